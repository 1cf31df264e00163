// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// profile is a scheduler configuration that is measured.
type profile string

const (
	// stock is kube-scheduler with its default configuration.
	stock profile = "stock"
	// netplane is the configuration that manifests/ installs.
	netplane profile = "netplane"
	// bare is the same with NetworkFit taken out: what the plugin alone costs.
	bare profile = "bare"
)

// settings come from the environment, so that make can hand them on.
type settings struct {
	nodes    int
	pods     int       // of each measurement
	rounds   int       // of all profiles, in turn
	requeues int       // of each kind
	profiles []profile // stock comes first
	pprof    string    // directory; empty for no profiles of the program itself
}

// read reads NODES, PODS, ROUNDS, REQUEUES, PROFILES and PPROF.
func read(b *testing.B) settings {
	b.Helper()
	s := settings{nodes: number(b, "NODES", 5000), rounds: number(b, "ROUNDS", 3), requeues: number(b, "REQUEUES", 100), pprof: os.Getenv("PPROF")}
	s.pods = number(b, "PODS", 2*s.nodes)
	names := os.Getenv("PROFILES")
	if names == "" {
		names = "stock netplane"
	}
	for _, name := range strings.Fields(names) {
		p := profile(name)
		if p != stock && p != netplane && p != bare {
			b.Fatalf("PROFILES: %q is unknown: use %s, %s or %s", name, stock, netplane, bare)
		}
		s.profiles = append(s.profiles, p)
	}
	return s
}

func number(b *testing.B, name string, otherwise int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s=%q: want a whole number from 1", name, text)
	}
	return n
}

// tell writes one line for whoever waits.
func tell(b *testing.B, format string, args ...any) {
	b.Helper()
	if err := report(format, args...); err != nil {
		b.Fatal(err)
	}
}

// report writes one line to the file that BENCH_REPORT names: both standard
// outputs are full of logs of Kubernetes.
func report(format string, args ...any) error {
	path := os.Getenv("BENCH_REPORT")
	if path == "" {
		path = "/dev/stderr"
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("opening BENCH_REPORT: %w", err)
	}
	_, err = fmt.Fprintf(file, format+"\n", args...)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("writing to BENCH_REPORT: %w", err)
	}
	return nil
}

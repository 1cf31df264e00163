// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netplane/netplane/test/isolated"
)

// advertised is what the API server names as its address, which must not be a
// loopback one. Nobody dials it.
const advertised = "192.0.2.1"

// The agents see only the NICs that the benchmarks make.
func TestMain(m *testing.M) { os.Exit(isolated.Main(m, furnish)) }

func furnish() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	address, err := netlink.ParseAddr(advertised + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, address); err != nil {
		return fmt.Errorf("giving lo an address: %w", err)
	}
	return nil
}

// say writes one line of the report: to the file that BENCH_REPORT names, else
// to stderr. Figures are lines that begin with "bench ".
func say(b *testing.B, format string, args ...any) {
	b.Helper()
	path := os.Getenv("BENCH_REPORT")
	if path == "" {
		path = "/dev/stderr"
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	_, err = fmt.Fprintf(file, format+"\n", args...)
	must(b, errors.Join(err, file.Close()))
}

func figure(b *testing.B, name string, value float64) {
	b.Helper()
	digits := 0
	if value < 100 {
		digits = 3
	}
	say(b, "bench addresses %s %s", name, strconv.FormatFloat(value, 'f', digits, 64))
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// setting reads a number of the environment.
func setting(b *testing.B, name string, standard int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return standard
	}
	value, err := strconv.Atoi(text)
	if err != nil || value <= 0 {
		b.Fatalf("%s is %q, want a number above 0", name, text)
	}
	return value
}

// percentile sorts its argument.
func percentile(durations []time.Duration, percent int) time.Duration {
	slices.Sort(durations)
	return durations[(len(durations)-1)*percent/100]
}

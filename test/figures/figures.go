// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package figures is what netplane's benchmarks of whole parts have in common:
// they read their sizes from the environment and leave their figures in a
// report, because their own outputs are full of the parts' logs. hack/bench.sh
// runs them.
package figures

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

// reportVariable names the file of the report.
const reportVariable = "BENCH_REPORT"

// Say writes one line of the report: to the file that BENCH_REPORT names, else
// to stderr. Figures are lines that begin with "bench ".
func Say(b *testing.B, format string, args ...any) {
	b.Helper()
	path := os.Getenv(reportVariable)
	if path == "" {
		path = "/dev/stderr"
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644) // #nosec G304 -- named by whoever runs the benchmark
	if err != nil {
		b.Fatal(err)
	}
	_, err = fmt.Fprintf(file, format+"\n", args...)
	if err = errors.Join(err, file.Close()); err != nil {
		b.Fatal(err)
	}
}

// Figure writes "bench SUBJECT NAME VALUE", whole from 100 on and with three
// digits behind the point below.
func Figure(b *testing.B, subject, name string, value float64) {
	b.Helper()
	digits := 0
	if value < 100 {
		digits = 3
	}
	Say(b, "bench %s %s %s", subject, name, strconv.FormatFloat(value, 'f', digits, 64))
}

// Setting reads a number above 0 from the environment; standard is what it is
// without one.
func Setting(b *testing.B, name string, standard int) int {
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

// Percentile is the smallest duration that percent of all do not exceed. It
// sorts its argument, which must not be empty.
func Percentile(durations []time.Duration, percent int) time.Duration {
	slices.Sort(durations)
	return durations[(len(durations)-1)*percent/100]
}

// Median sorts its argument, which must not be empty, and returns the middle;
// of an even number the upper of the two.
func Median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

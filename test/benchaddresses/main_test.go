// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"os"
	"testing"

	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/isolated"
)

// The agents see only the NICs that the benchmarks make.
func TestMain(m *testing.M) { os.Exit(isolated.Main(m, isolated.Loopback)) }

func figure(b *testing.B, name string, value float64) {
	b.Helper()
	figures.Figure(b, "addresses", name, value)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"os"
	"regexp"
	"testing"
)

func TestEveryMetricIsDocumented(t *testing.T) {
	source, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/user/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`"(netplane_[a-z_]+)"`).FindAllSubmatch(source, -1)
	if len(names) < 3 {
		t.Fatalf("found only %d metrics: the search is broken", len(names))
	}
	for _, name := range names {
		if !bytes.Contains(page, append([]byte("| `"), name[1]...)) {
			t.Errorf("%s has no row in docs/user/metrics.md", name[1])
		}
	}
}

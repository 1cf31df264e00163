// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// The binary is started for every command of every pod. Packages that it does
// not use cost it all the same: what they set up at the start, and their pages.
func TestBinaryLinksNoHTTP(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	linked := strings.Fields(string(out))
	if !slices.Contains(linked, "github.com/containernetworking/cni/libcni") {
		t.Fatalf("go list tells of something else:\n%s", out)
	}
	for _, heavy := range []string{"net/http", "crypto/tls", "github.com/vishvananda/netlink"} {
		if slices.Contains(linked, heavy) {
			t.Errorf("the CNI binary links %s", heavy)
		}
	}
}

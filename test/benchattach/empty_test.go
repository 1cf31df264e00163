// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/netplane/netplane/cni/wire"
)

// newEmpty is the way of a plugin that does nothing, run as netplane's is: what
// is left of netplane's time is its own.
func newEmpty(b *testing.B, _ shape) way {
	b.Helper()
	dir := b.TempDir()
	buildProgram(b, filepath.Join(dir, "empty"), "github.com/netplane/netplane/test/benchattach/empty")
	return lone(b, dir, map[string]any{"type": "empty"})
}

// newAnswer is the way of netplane's binary that answers as many addresses as the
// pod would have by itself, as it does when it is a delegate's IPAM plugin: it asks
// no agent, and makes nothing. With what the kernel takes for the links at the least,
// the floor, that is what an ADD cannot be below.
func newAnswer(b *testing.B, s shape) way {
	b.Helper()
	dir := b.TempDir()
	buildProgram(b, filepath.Join(dir, "answer"), "github.com/netplane/netplane/cni/plugin")
	ipam := wire.IPAM{Type: wire.PluginType}
	for i := range s.interfaces {
		ipam.Addresses = append(ipam.Addresses, wire.IPAMAddress{Address: fmt.Sprintf("10.%d.0.2/16", i), Gateway: fmt.Sprintf("10.%d.0.1", i)})
		if s.dual {
			ipam.Addresses = append(ipam.Addresses, wire.IPAMAddress{Address: fmt.Sprintf("fd00:%d::2/64", i), Gateway: fmt.Sprintf("fd00:%d::1", i)})
		}
	}
	return lone(b, dir, map[string]any{"type": "answer", "ipam": ipam})
}

// lone runs one plugin of a folder.
func lone(b *testing.B, dir string, plugin map[string]any) way {
	b.Helper()
	raw, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "lone", "plugins": []any{plugin}})
	must(b, err)
	list, err := libcni.NetworkConfFromBytes(raw)
	must(b, err)
	return &runtime{cni: libcni.NewCNIConfig([]string{dir}, nil), attachments: []attachment{{list: list, ifname: ifName(0)}}}
}

// buildProgram builds a command as the images have theirs.
func buildProgram(b *testing.B, out, pkg string) {
	b.Helper()
	build := exec.CommandContext(b.Context(), "go", "build", "-ldflags", "-s -w", "-o", out, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		b.Fatalf("building %s: %v\n%s", pkg, err, text)
	}
}

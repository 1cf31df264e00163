// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// newEmpty is the way of a plugin that does nothing, run as netplane's is: what
// is left of netplane's time is its own.
func newEmpty(b *testing.B, _ shape) way {
	b.Helper()
	dir := b.TempDir()
	buildProgram(b, filepath.Join(dir, "empty"), "github.com/netplane/netplane/test/benchattach/empty")
	list, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion":"1.0.0","name":"empty","plugins":[{"type":"empty"}]}`))
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

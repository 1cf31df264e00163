// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/test/isolated"
)

func TestMain(m *testing.M) {
	os.Exit(isolated.Main(m, func() error {
		// libcni's default cache is below it, and must not be the machine's.
		return unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, "")
	}))
}

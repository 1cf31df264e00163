// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package isolated runs a test binary in namespaces of its own, so that what
// its tests do to links and mounts neither reaches the machine nor needs root:
// without root a user namespace stands in for it, where the system allows one.
package isolated

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set in the process that runs in the namespaces.
const inside = "NETPLANE_TEST_INSIDE"

// Main is the body of a TestMain: it starts the test binary again in a new
// network and a new mount namespace, has furnish (which may be nil) prepare
// them, and runs the tests there. It returns the exit code. Where the system
// allows no namespaces it says so and skips all tests.
func Main(m *testing.M, furnish func() error) int {
	if os.Getenv(inside) == "" {
		return again()
	}
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil && furnish != nil {
		err = furnish()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "preparing the namespaces:", err)
		return 1
	}
	return m.Run()
}

func again() int {
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Env = append(os.Environ(), inside+"=1")
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		child.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	if err := child.Start(); err != nil {
		fmt.Println("SKIP: this system allows no user namespace, and the tests do not run as root:", err)
		return 0
	}
	err := child.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

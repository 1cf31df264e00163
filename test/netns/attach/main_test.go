// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is set in the process that runs in namespaces of its own.
const inside = "NETPLANE_TEST_INSIDE"

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run starts the test binary again in new namespaces: nothing that a test does
// reaches the machine, and all of it goes with the process.
func run(m *testing.M) int {
	if os.Getenv(inside) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "making mounts private:", err)
			return 1
		}
		// libcni's default cache is below it, and must not be the machine's.
		if err := unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, "mounting a state folder:", err)
			return 1
		}
		return m.Run()
	}
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

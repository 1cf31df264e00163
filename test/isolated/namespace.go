// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package isolated

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Advertised is what an API server in the namespaces has to name as its
// address, which must not be a loopback one. Nobody dials it.
const Advertised = "192.0.2.1"

// Loopback prepares the namespaces for an API server: lo is up and has the
// address Advertised. It is meant for Main.
func Loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	address, err := netlink.ParseAddr(Advertised + "/32")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(lo, address); err != nil {
		return fmt.Errorf("giving lo an address: %w", err)
	}
	return nil
}

// NewNamespace makes a network namespace, held by a bind mount until the test
// ends, and returns its path.
func NewNamespace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := MakeNamespace(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// MakeNamespace makes a network namespace and binds it to path, as runtimes do
// it. Unmounting path lets it go.
func MakeNamespace(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return fmt.Errorf("making a namespace's file: %w", err)
	}
	return away(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a namespace: %w", err)
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	})
}

// In runs do on a thread inside the network namespace at path.
func In(path string, do func() error) error {
	return away(func() error {
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if err != nil {
			return err
		}
		return do()
	})
}

// away runs f, which may change its thread's network namespace. The thread goes
// home, or ends. The process's first one cannot end: it would hold a namespace
// for as long as the process runs.
func away(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("opening the present namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

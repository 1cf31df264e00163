// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
)

// newTightHost is a host whose agent keeps its state in a file system of
// 256 kB, as /run is one with an end.
func newTightHost(t *testing.T, networks ...*v1alpha1.Network) *host {
	t.Helper()
	_, err := build()
	must(t, err)
	run := t.TempDir()
	must(t, unix.Mount("tmpfs", run, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { _ = unix.Unmount(run, unix.MNT_DETACH) })
	t.Setenv("TMPDIR", run)
	return newHost(t, networks...)
}

// fill leaves no byte, and returns what makes room again.
func (h *host) fill() (room func()) {
	h.t.Helper()
	ballast := filepath.Join(h.state, "ballast")
	file, err := os.Create(ballast)
	must(h.t, err)
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		h.t.Fatalf("filling: %v", err)
	}
	must(h.t, file.Close())
	return func() { must(h.t, os.Remove(ballast)) }
}

// manyInterfaces makes the journal's line longer than what is free in its last
// page, which a full tmpfs still takes.
func manyInterfaces() (networks string, count int) {
	const all = 20
	var out []string
	for i := range all {
		out = append(out, fmt.Sprintf("data@net%d", i))
	}
	return strings.Join(out, ","), all
}

func TestDelWithoutRoomIsRefusedAndNothingIsLost(t *testing.T) {
	h := newTightHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	pod := newSpace(t, "pod")
	networks, count := manyInterfaces()
	rt := h.runtimeConf("c1", pod, asks(networks))
	_, err := h.cniAdd(rt)
	must(t, err)
	room := h.fill()
	for range 2 {
		wantError(t, h.cniDel(rt), 999, "no space left on device")
		if leases := h.ipam.Leases(); len(leases) != count {
			t.Errorf("%d addresses are in use, want all %d: nobody else may get them before the journal says so", len(leases), count)
		}
		records, _, err := attach.Sandboxes(attach.Config{StateDir: h.state}.Sandboxes()).Load()
		if err != nil || len(records) != 1 {
			t.Errorf("records: %v, %v", records, err)
		}
	}
	_, err = h.cniAdd(h.runtimeConf("c2", newSpace(t, "other"), asks(networks)))
	wantError(t, err, 11, "no space left on device")
	room()
	must(t, h.cniDel(rt))
	h.nothingLeft(t, "eth1")
	if left := pod.links(t); len(left) > 0 {
		t.Errorf("left in the pod: %v", left)
	}
}

func TestDelWithoutAgentAndRoomIsRefused(t *testing.T) {
	h := newTightHost(t, network("data", v1alpha1.PluginMacvlan, nil))
	h.start(t)
	rt := h.runtimeConf("c1", newSpace(t, "pod"), asks("data@net1"))
	_, err := h.cniAdd(rt)
	must(t, err)
	h.stop()
	room := h.fill()
	wantError(t, h.cniDel(rt), 5, "the DEL could not be left for it")
	if dels, files, err := (attach.Config{StateDir: h.state}).Spool().List(); err != nil || len(dels)+len(files) > 0 {
		t.Errorf("spool: %v, %v, %v", dels, files, err)
	}
	room()
	must(t, h.cniDel(rt))
	h.start(t)
	h.nothingLeft(t, "eth1")
}

func TestAnAgentStartsWithoutRoom(t *testing.T) {
	data := network("data", v1alpha1.PluginMacvlan, nil)
	h := newTightHost(t, data)
	h.start(t)
	pod := newSpace(t, "pod")
	networks, count := manyInterfaces()
	rt := h.runtimeConf("c1", pod, asks(networks))
	_, err := h.cniAdd(rt)
	must(t, err)
	h.stop()
	must(t, h.ipam.Close())
	room := h.fill()
	h.address(t, data)
	h.start(t)
	must(t, h.cniCheck(rt))
	if leases := h.ipam.Leases(); len(leases) != count {
		t.Errorf("%d addresses are in use, want all %d", len(leases), count)
	}
	_, err = h.cniAdd(h.runtimeConf("c2", newSpace(t, "other"), asks(networks)))
	wantError(t, err, 11, "no space left on device")
	wantError(t, h.cniDel(rt), 999, "no space left on device")
	room()
	must(t, h.cniDel(rt))
	h.nothingLeft(t, "eth1")
}

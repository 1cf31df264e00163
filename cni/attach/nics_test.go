// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// nicWorld is a node with NICs to give away.
func nicWorld(t *testing.T, nics ...string) *world {
	t.Helper()
	w := newWorld(t)
	mtus := map[string]int{"eth1": 1500}
	for _, nic := range nics {
		mtus[nic] = 9000
	}
	w.links, w.exclusive = link.NewFake(mtus), nics
	w.networks["fast"] = ready("fast", v1alpha1.PluginHostDevice, "10.40.0.0/16", "fd00:10:40::/64")
	w.open(t, t.TempDir())
	return w
}

// inPods lists the NICs that the inventory is told of.
func (w *world) inPods() []string {
	var out []string
	for _, d := range w.NICsInPods() {
		out = append(out, d.Name)
	}
	slices.Sort(out)
	return out
}

func TestAPodGetsAWholeNIC(t *testing.T) {
	w := nicWorld(t, "eth3", "eth2")
	w.networks["fast"].Spec.MTU = 4000
	if err := w.add(t.Context(), "c1", "fast@data0"); err != nil {
		t.Fatal(err)
	}
	nic, err := link.NewFake(map[string]int{"eth3": 9000}).NIC("eth3")
	if err != nil {
		t.Fatal(err)
	}
	want := "/ns/c1: data0 host-device on eth3 mac " + nic.MAC + " mtu 4000 10.40.0.2/16 fd00:10:40::a28:2/64\n"
	if diff := cmp.Diff(want, w.links.String()); diff != "" {
		t.Error(diff)
	}
	if got := string(w.snapshot()[0].Attachments[0].DeviceInfo); got != `{"pci":{"pci-address":"0000:3b:00.3"},"type":"pci","version":"1.1.0"}` {
		t.Errorf("device-info is %s", got)
	}
	told := w.NICsInPods()
	if len(told) != 1 || told[0].Name != "eth3" || told[0].MTU != 9000 || told[0].MAC.String() != nic.MAC || told[0].Sysfs.PCIAddress != "0000:3b:00.3" || !told[0].InPod {
		t.Errorf("the inventory is told of %+v", told)
	}
	t.Run("another gets the next, with the MAC that it asks for", func(t *testing.T) {
		if err := w.add(t.Context(), "c2", `[{"name": "fast", "mac": "02:00:00:00:00:99"}]`); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(w.links.String(), "/ns/c2: net1 host-device on eth2 mac 02:00:00:00:00:99") {
			t.Error(w.links)
		}
	})
	t.Run("a third gets none", func(t *testing.T) {
		err := w.add(t.Context(), "c3", "fast")
		if err == nil || !strings.Contains(err.Error(), `no NIC of this node that backs physical network "phy-net0" is free for network "fast"`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a new agent knows who has which", func(t *testing.T) {
		state := strings.TrimSuffix(string(w.records), "/sandboxes")
		w.open(t, state)
		if err := w.ReplaySpool(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"eth2", "eth3"}, w.inPods()); diff != "" {
			t.Error(diff)
		}
		if err := w.add(t.Context(), "c3", "fast"); err == nil {
			t.Error("a NIC was given twice")
		}
	})
	t.Run("DEL brings it back", func(t *testing.T) {
		sandbox := sandboxOf("c1")
		for range 2 {
			if err := w.del(t.Context(), &sandbox); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.add(t.Context(), "c3", "fast"); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"eth2", "eth3"}, w.inPods()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPodsThatStartAtOnceGetDifferentNICs(t *testing.T) {
	const pods, nics = 24, 5
	var names []string
	for i := range nics {
		names = append(names, fmt.Sprint("eth", i+2))
	}
	w := nicWorld(t, names...)
	var group sync.WaitGroup
	failed := make([]error, pods)
	for i := range pods {
		group.Go(func() { failed[i] = w.add(t.Context(), fmt.Sprint("c", i), "fast") })
	}
	group.Wait()
	var without int
	for _, err := range failed {
		if err != nil && !strings.Contains(err.Error(), "is free for network") {
			t.Error(err)
		}
		if err != nil {
			without++
		}
	}
	if without != pods-nics {
		t.Errorf("%d pods of %d have no NIC, want %d", without, pods, pods-nics)
	}
	if diff := cmp.Diff(names, w.inPods()); diff != "" {
		t.Error(diff)
	}
}

func TestNICOfAnAddThatFailsIsFreeAgain(t *testing.T) {
	for name, test := range map[string]struct {
		asks   string
		spoil  func(w *world)
		commit bool
	}{
		"no address":                   {asks: "fast,full"},
		"another network is not there": {asks: "fast,unknown"},
		"the NIC cannot be moved": {asks: "fast", commit: true, spoil: func(w *world) {
			w.links.FailOn = func(operation string) error {
				if operation == "add net1" {
					return errors.New("boom")
				}
				return nil
			}
		}},
		"the other interface cannot be made": {asks: "fast,data", commit: true, spoil: func(w *world) {
			w.links.FailOn = func(operation string) error {
				if operation == "add net2" {
					return errors.New("boom")
				}
				return nil
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := nicWorld(t, "eth2")
			if test.spoil != nil {
				test.spoil(w)
			}
			if err := w.add(t.Context(), "c1", test.asks); err == nil {
				t.Fatal("it succeeds")
			}
			w.links.FailOn = nil
			if got := w.inPods(); len(got) > 0 {
				t.Errorf("still away: %v", got)
			}
			if err := w.add(t.Context(), "c2", "fast"); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("the caller is gone before Commit", func(t *testing.T) {
		w := nicWorld(t, "eth2")
		sandbox := sandboxOf("c1")
		if _, err := w.prepare(t.Context(), &sandbox, "fast", nil); err != nil {
			t.Fatal(err)
		}
		if err := w.add(t.Context(), "c2", "fast"); err == nil {
			t.Error("a NIC that was chosen is given to another")
		}
		if err := w.release(t.Context(), &sandbox, nil); err != nil {
			t.Fatal(err)
		}
		if err := w.add(t.Context(), "c2", "fast"); err != nil {
			t.Error(err)
		}
	})
}

func TestNICsThatCannotBeGiven(t *testing.T) {
	for name, test := range map[string]struct {
		asks  string
		spoil func(w *world)
		want  string
	}{
		"as eth0": {"fast@eth0", func(*world) {}, `network "fast" gives the pod a whole NIC, which cannot be its eth0`},
		"one with too small an MTU": {"fast", func(w *world) { w.networks["fast"].Spec.MTU = 9001 },
			`mtu 9001 of network "fast" is larger than the 9000 of NIC eth2`},
		"one that the host uses by now": {"fast", func(w *world) {
			w.links.FailOn = func(string) error { return errors.New("NIC eth2 carries the host's address 192.0.2.1/24") }
		}, `network "fast": NIC eth2 carries the host's address 192.0.2.1/24`},
		"of a Network that the node refuses": {"fast", func(w *world) { w.refused["fast"] = "NIC eth2 is shared" }, `this node cannot serve network "fast": NIC eth2 is shared`},
		"one that a macvlan stands on": {"fast", func(w *world) {
			w.parents, w.bridged = []string{"eth2"}, nil
			if err := w.add(t.Context(), "c0", "management@net1"); err != nil {
				t.Fatal(err)
			}
		}, "is free for network"},
	} {
		t.Run(name, func(t *testing.T) {
			w := nicWorld(t, "eth2")
			test.spoil(w)
			err := w.add(t.Context(), "c1", test.asks)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// The inventory lists a NIC that is away from what it is told, so it must hear
// of every change.
func TestTheInventoryHearsOfNICsThatGoAndCome(t *testing.T) {
	w := nicWorld(t, "eth2")
	heard := 0
	w.deps.NICsChanged = func() { heard++ }
	if err := w.add(t.Context(), "c0", "data"); err != nil || heard != 0 {
		t.Fatalf("heard %d times of a pod without a NIC (%v)", heard, err)
	}
	if err := w.add(t.Context(), "c1", "fast"); err != nil || heard != 1 {
		t.Fatalf("heard %d times (%v)", heard, err)
	}
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err != nil || heard != 2 {
		t.Fatalf("heard %d times (%v)", heard, err)
	}
}

// A NIC in the place of another interface: of the one that has it already it
// comes free, of others it must be.
func TestANICTakesThePlaceOfAnotherInterface(t *testing.T) {
	for name, test := range map[string]struct {
		from, to string
		others   string // what another pod has
		want     string
	}{
		"of one without":            {from: "data@eth1", to: "fast@eth1", want: "fast"},
		"of one with it":            {from: "fast@eth1", to: `[{"name": "fast", "ifname": "eth1", "mtu": 1400}]`, want: "fast"},
		"none is left":              {from: "data@eth1", to: "fast@eth1", others: "fast", want: "data"},
		"no address is left for it": {from: "fast@eth1", to: "whole@eth1", want: "fast"},
	} {
		t.Run(name, func(t *testing.T) {
			w := nicWorld(t, "eth2")
			w.networks["whole"] = ready("whole", v1alpha1.PluginHostDevice, "10.60.0.0/16", "")
			w.full = []string{"whole"}
			for id, networks := range map[string]string{"c1": test.from, "c2": test.others} {
				if networks == "" {
					continue
				}
				if err := w.add(t.Context(), id, networks); err != nil {
					t.Fatal(err)
				}
			}
			done := w.ask(t, "c1", test.to)
			if changed := strings.Contains(test.to, test.want); done != changed {
				t.Errorf("done: %v, events %q", done, w.events)
			}
			if got := w.interfaces(t, "c1"); len(got) != 1 || got[0] != "eth1 "+test.want {
				t.Errorf("got %v, events %q", got, w.events)
			}
		})
	}
}

// Two ADDs were admitted when the NIC could serve either; which of them comes
// first to its end must not matter.
func TestANICIsNotGivenAwayBelowAnotherPod(t *testing.T) {
	world := func() (*world, wire.Sandbox, wire.Sandbox) {
		w := nicWorld(t, "eth2")
		w.parents, w.bridged = []string{"eth2"}, nil
		return w, sandboxOf("c1"), sandboxOf("c2")
	}
	t.Run("chosen whole since", func(t *testing.T) {
		w, sharing, whole := world()
		all, err := w.prepare(t.Context(), &sharing, "management@net1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.prepare(t.Context(), &whole, "fast", nil); err != nil {
			t.Fatal(err)
		}
		_, _, err = w.commit(t.Context(), &sharing, all, nil)
		if err == nil || !strings.Contains(err.Error(), `network "management": NIC eth2 is being given to a pod whole`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("about to be stood on", func(t *testing.T) {
		w, sharing, whole := world()
		all, err := w.prepare(t.Context(), &sharing, "management@net1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.standOn(sharing.ContainerID, all); err != nil {
			t.Fatal(err)
		}
		if _, err := w.prepare(t.Context(), &whole, "fast", nil); err == nil || !strings.Contains(err.Error(), "is free for network") {
			t.Errorf("got %v", err)
		}
		w.nics.drop(sharing.ContainerID)
		if _, err := w.prepare(t.Context(), &whole, "fast", nil); err != nil {
			t.Error(err)
		}
	})
}

// A tunnel's NIC may have link-local addresses only, so that it looks unused.
func TestTheNICBelowATunnelIsInUse(t *testing.T) {
	w := nicWorld(t, "eth2")
	w.deps.Overlays = tunnelOver("eth2")
	err := w.add(t.Context(), "c1", "fast")
	if err == nil || !strings.Contains(err.Error(), "is free for network") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"eth2"}, w.Server.Parents()); diff != "" {
		t.Errorf("the inventory is told otherwise: %s", diff)
	}
}

type tunnelOver string

func (tunnelOver) Ensure(context.Context, *v1alpha1.Network) error { return nil }
func (tunnelOver) Notify()                                         {}
func (o tunnelOver) Devices() []string                             { return []string{string(o)} }

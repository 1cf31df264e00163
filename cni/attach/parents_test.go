// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// of makes a Network of one plugin; its MTU is the NIC's.
func of(plugin string, vlan int32, config string) *v1alpha1.Network {
	n := ready("data", plugin, "10.20.0.0/16", "")
	n.Spec.VLAN = vlan
	if config != "" {
		n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(config)}
	}
	return n
}

func TestEachKindStandsOnItsParent(t *testing.T) {
	shared := link.FakeMAC("eth1")
	end := link.HostEndName("c1", "net1")
	for _, test := range []struct {
		name    string
		network *v1alpha1.Network
		bridged bool
		want    []string
	}{
		{"macvlan", of("macvlan", 0, ""), false, []string{"/ns/c1: net1 macvlan on eth1 mac OWN mtu 1500 10.20.0.2/16"}},
		{"macvlan with a mode", of("macvlan", 0, `{"mode": "vepa"}`), false, []string{"/ns/c1: net1 macvlan on eth1 mac OWN mtu 1500 mode vepa 10.20.0.2/16"}},
		{"passthru", of("macvlan", 0, `{"mode": "passthru"}`), false, []string{"/ns/c1: net1 macvlan on eth1 mac " + shared + " mtu 1500 mode passthru 10.20.0.2/16"}},
		{"macvlan with a tag", of("macvlan", 100, ""), false, []string{
			"/ns/c1: net1 macvlan on eth1.100 mac OWN mtu 1500 10.20.0.2/16", "host: eth1.100 vlan 100 on eth1",
		}},
		{"ipvlan", of("ipvlan", 0, ""), false, []string{"/ns/c1: net1 ipvlan on eth1 mac " + shared + " mtu 1500 10.20.0.2/16"}},
		{"ipvlan l3 with a tag", of("ipvlan", 100, `{"mode": "l3"}`), false, []string{
			"/ns/c1: net1 ipvlan on eth1.100 mac " + shared + " mtu 1500 mode l3 10.20.0.2/16", "host: eth1.100 vlan 100 on eth1",
		}},
		{"bridge", of("bridge", 0, ""), true, []string{
			"/ns/c1: net1 veth on np-eth1 mac OWN mtu 1500 10.20.0.2/16", "host: " + end + " veth master np-eth1", "host: np-eth1 bridge port eth1",
		}},
		{"bridge with a tag", of("bridge", 100, ""), true, []string{
			"/ns/c1: net1 veth on np-eth1.100 mac OWN mtu 1500 10.20.0.2/16", "host: eth1.100 vlan 100 on eth1",
			"host: " + end + " veth master np-eth1.100", "host: np-eth1.100 bridge port eth1.100",
		}},
		{"bridge with its options", of("bridge", 0, `{"isolated": true, "spoofCheck": true}`), true, []string{
			"/ns/c1: net1 veth on np-eth1 mac OWN mtu 1500 10.20.0.2/16", "guard: " + end + " mac OWN",
			"host: " + end + " veth master np-eth1 isolated", "host: np-eth1 bridge port eth1",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.networks["data"], w.bridged["eth1"] = test.network, test.bridged
			if err := w.add(t.Context(), "c1", "data"); err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(strings.Join(test.want, "\n"), "OWN", "0a:"+mac(t, w, "data"))
			if diff := cmp.Diff(sorted(want), sorted(w.links.String())); diff != "" {
				t.Error(diff)
			}
			for range 2 {
				sandbox := sandboxOf("c1")
				if err := w.del(t.Context(), &sandbox); err != nil {
					t.Fatal(err)
				}
			}
			w.pruneParents(t.Context(), nil)
			if left := w.links.String(); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestParentsGoAfterTheirLastPod(t *testing.T) {
	w := newWorld(t)
	w.networks["data"] = of("bridge", 100, "")
	for _, id := range []string{"c1", "c2"} {
		if err := w.add(t.Context(), id, "data"); err != nil {
			t.Fatal(err)
		}
	}
	stands := func() bool {
		return strings.Contains(w.links.String(), "np-eth1.100 bridge") && strings.Contains(w.links.String(), "eth1.100 vlan")
	}
	var used []string
	end := func(id string) {
		t.Helper()
		sandbox := sandboxOf(id)
		if err := w.del(t.Context(), &sandbox); err != nil {
			t.Fatal(err)
		}
		used = w.pruneParents(t.Context(), used)
	}
	end("c1")
	if !stands() {
		t.Fatalf("gone although c2 needs it: %s", w.links)
	}
	end("c2")
	if !stands() {
		t.Error("gone at once: a successor of the pod would make it anew")
	}
	used = w.pruneParents(t.Context(), used)
	if left := w.links.String(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestParentsStayWhileAnAddIsAboutToUseThem(t *testing.T) {
	w := newWorld(t)
	if _, err := w.links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Bridge: true}); err != nil {
		t.Fatal(err)
	}
	w.Server.parents.RLock() // as plan does
	w.pruneParents(t.Context(), nil)
	if !strings.Contains(w.links.String(), "np-eth1 bridge") {
		t.Error("removed while an ADD designs")
	}
	w.Server.parents.RUnlock()
	w.pruneParents(t.Context(), nil)
	if left := w.links.String(); left != "" {
		t.Errorf("left: %s", left)
	}
}

// An agent that starts removes what the one before left, and only that.
func TestARestartedAgentPrunesByTheRecords(t *testing.T) {
	w := newWorld(t)
	w.networks["data"] = of("bridge", 0, `{"spoofCheck": true}`)
	if err := w.add(t.Context(), "c1", "data"); err != nil {
		t.Fatal(err)
	}
	before := w.links.String()
	if _, err := w.links.EnsureParent(t.Context(), link.ParentSpec{NIC: "eth1", Tag: 7, Bridge: true}); err != nil {
		t.Fatal(err)
	}
	state := w.config.StateDir
	w.open(t, state)
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	orphan := func() []link.Interface { return []link.Interface{{HostEnd: "npv0", SpoofCheck: true}} }
	if err := w.links.RestoreGuards(t.Context(), orphan); err != nil {
		t.Fatal(err)
	}
	w.restore(t.Context())
	w.pruneParents(t.Context(), nil)
	if diff := cmp.Diff(before+"untagged: ports of pods\n", w.links.String()); diff != "" {
		t.Error(diff)
	}

	// Of a record that cannot be read nobody knows what it used.
	path := filepath.Join(string(w.records), "c1.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.open(t, state)
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.pruneParents(t.Context(), nil)
	if !strings.Contains(w.links.String(), "np-eth1 bridge") {
		t.Error("removed under a pod whose record cannot be read")
	}
}

// The last agent takes along what the pods that are gone stood on, and nothing
// of those that live.
func TestTheLastAgentRemovesWhatIsIdle(t *testing.T) {
	w := newWorld(t)
	w.networks["data"], w.networks["other"] = of("bridge", 0, ""), of("bridge", 100, "")
	for id, network := range map[string]string{"c1": "data", "c2": "other"} {
		if err := w.add(t.Context(), id, network); err != nil {
			t.Fatal(err)
		}
	}
	w.Leave(t.Context())
	for _, bridge := range []string{"np-eth1 bridge", "np-eth1.100 bridge"} {
		if !strings.Contains(w.links.String(), bridge) {
			t.Errorf("removed under a pod: %s", bridge)
		}
	}
	for _, id := range []string{"c1", "c2"} {
		w.gone[sandboxOf(id).NetNS] = true
	}
	w.Leave(t.Context())
	if left := w.links.String(); left != "" {
		t.Errorf("left: %s", left)
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// ask changes the annotation of a pod, and has its interfaces follow.
func (w *world) ask(t *testing.T, id, networks string) (done bool) {
	t.Helper()
	w.asked["pod-"+id] = networks
	return w.look(t.Context(), types.UID("uid-"+id))
}

// interfaces are what is in a pod's namespace, as name and network.
func (w *world) interfaces(t *testing.T, id string) []string {
	t.Helper()
	record, ok := w.sandbox(id)
	if !ok {
		return nil
	}
	var out, there, leased []string
	for i := range record.Interfaces {
		out = append(out, record.Interfaces[i].Name+" "+record.Asked[i].Name)
	}
	for line := range strings.Lines(w.links.String()) {
		if rest, of := strings.CutPrefix(line, "/ns/"+id+": "); of {
			there = append(there, strings.Fields(rest)[0])
		}
	}
	for key := range maps.Keys(w.leases) {
		if name, of := strings.CutPrefix(key, id+"/"); of {
			leased = append(leased, name)
		}
	}
	slices.Sort(out)
	slices.Sort(there)
	slices.Sort(leased)
	names := make([]string, len(out))
	for i := range out {
		names[i] = strings.Fields(out[i])[0]
	}
	if !slices.Equal(names, there) || !slices.Equal(names, leased) || len(record.Going) > 0 {
		t.Errorf("the record of %s has %v (going %v), its namespace %v, leases are there for %v", id, names, record.Going, there, leased)
	}
	return out
}

// answer runs an ADD and returns what the runtime is told.
func (w *world) answer(t *testing.T, id, networks string) json.RawMessage {
	t.Helper()
	sandbox := sandboxOf(id)
	all, err := w.prepare(t.Context(), &sandbox, networks, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, raw, err := w.commit(t.Context(), &sandbox, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestHotPlugFollowsTheAnnotation(t *testing.T) {
	w := newWorld(t)
	w.networks["backup"] = ready("backup", v1alpha1.PluginMacvlan, "10.40.0.0/16", "")
	answered := w.answer(t, "c1", "management@eth0,data@eth1")
	before := w.links.String()
	for _, step := range []struct {
		ask       string
		have      []string
		uses      string
		event     string
		unchanged bool // eth0, and what the host has for it
	}{
		{"management@eth0,data@eth1,backup@eth2", []string{"eth0 management", "eth1 data", "eth2 backup"}, "backup=1,data=1,management=1", `plugged: added eth2 on network "backup"`, true},
		{"management@eth0,backup@eth2", []string{"eth0 management", "eth2 backup"}, "backup=1,management=1", "plugged: removed eth1", false},
		{"management@eth0,data@eth2", []string{"eth0 management", "eth2 data"}, "data=1,management=1", `plugged: removed eth2, added eth2 on network "data"`, false},
		{"data@eth2", []string{"eth0 management", "eth2 data"}, "data=1,management=1",
			`refused: interface eth0 on network "management" stays as it is: eth0 is made with the pod, whose IP it has; make the pod anew`, false},
		{"", []string{"eth0 management"}, "management=1", "plugged: removed eth2", false},
		{"data@", []string{"eth0 management"}, "management=1",
			`refused: the interfaces stay as they are: annotation netplane.io/networks: item 1 (network "data"): no ifname follows the '@': write one, such as data@eth1, or leave out the '@'`, false},
		{"management@eth0,data@eth1", []string{"eth0 management", "eth1 data"}, "data=1,management=1", `plugged: added eth1 on network "data"`, true},
	} {
		if !w.ask(t, "c1", step.ask) {
			t.Errorf("%q: not done", step.ask)
		}
		if diff := cmp.Diff(step.have, w.interfaces(t, "c1")); diff != "" {
			t.Errorf("%q: %s", step.ask, diff)
		}
		of := sandboxOf("c1")
		if err := w.check(t.Context(), &of, answered); err != nil {
			t.Errorf("%q: CHECK against what the ADD answered: %v", step.ask, err)
		}
		if got := w.uses["c1"]; got != step.uses || w.reported["c1"] != len(step.have) {
			t.Errorf("%q: reported %d interfaces, %s", step.ask, w.reported["c1"], got)
		}
		if !slices.Contains(w.events, step.event) {
			t.Errorf("%q: events %q", step.ask, w.events)
		}
		for line := range strings.Lines(before) {
			if step.unchanged && !strings.Contains(w.links.String(), line) {
				t.Errorf("%q: lost %s", step.ask, line)
			}
		}
		w.events = nil
	}
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err != nil || len(w.leases) > 0 || strings.Contains(w.links.String(), "/ns/c1") || len(w.files(t)) > 0 {
		t.Errorf("after DEL (%v): %v %v\n%s", err, w.leases, w.files(t), w.links.String())
	}
}

func TestHotPlugIsTriedAgainUntilTheNodeCan(t *testing.T) {
	for name, test := range map[string]struct {
		breaks, mends func(*world)
		want          string
	}{
		"no such network": {func(w *world) { delete(w.networks, "backup") }, func(w *world) { w.networks["backup"] = ready("backup", "macvlan", "10.40.0.0/16", "") },
			`network "backup" does not exist`},
		"no NIC":  {func(w *world) { w.parents = nil }, func(w *world) { w.parents = []string{"eth1"} }, `no NIC of this node backs physical network "phy-net0"`},
		"refused": {func(w *world) { w.refused["backup"] = "a conflict" }, func(w *world) { delete(w.refused, "backup") }, `this node cannot serve network "backup": a conflict`},
		"namespace": {func(w *world) {
			w.networks["backup"].Spec.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}
		}, func(w *world) { w.networks["backup"].Spec.NamespaceSelector = nil }, `namespace "default" may not use network "backup"`},
		"link fails":   {func(w *world) { w.links.FailOn = failing("add eth2") }, func(w *world) { w.links.FailOn = nil }, "interface eth2: injected"},
		"bridge fails": {func(w *world) { w.links.FailOn = failing("bridge eth1") }, func(w *world) { w.links.FailOn = nil }, "injected"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.networks["backup"] = ready("backup", v1alpha1.PluginMacvlan, "10.40.0.0/16", "")
			if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
				t.Fatal(err)
			}
			test.breaks(w)
			for range 3 {
				if w.ask(t, "c1", "data@eth1,backup@eth2") {
					t.Error("it is not tried again")
				}
				if diff := cmp.Diff([]string{"eth1 data"}, w.interfaces(t, "c1")); diff != "" {
					t.Error(diff)
				}
			}
			if len(w.events) != 1 || !strings.HasPrefix(w.events[0], `refused: interface eth2 on network "backup" is not added yet: `) || !strings.Contains(w.events[0], test.want) {
				t.Errorf("events %q, want one with %q", w.events, test.want)
			}
			test.mends(w)
			if !w.ask(t, "c1", "data@eth1,backup@eth2") {
				t.Error("not done")
			}
			if diff := cmp.Diff([]string{"eth1 data", "eth2 backup"}, w.interfaces(t, "c1")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestAnInterfaceStaysUntilAnotherCanTakeItsPlace: an item that changes into one
// that cannot be had costs the pod nothing.
func TestAnInterfaceStaysUntilAnotherCanTakeItsPlace(t *testing.T) {
	const tuned = `[{"name": "data", "ifname": "eth1", "sysctls": {"net.ipv4.conf.IFNAME.rp_filter": "2"}}]`
	const fixed = `[{"name": "data", "ifname": "eth1", "sticky": true}]`
	for name, test := range map[string]struct {
		asked string
		want  string
		mends func(*world)
		then  string
	}{
		"a network without a free address": {"full@eth1", `interface eth1 is not changed yet: network "full" has no free address on this node`,
			func(w *world) { w.full = nil }, "eth1 full"},
		"a fixed address that nobody has given it": {fixed, `interface eth1 is not changed yet: network "data": no IPClaim gives pod default/pod-c1 its fixed address on this node yet: see kubectl get ipclaims, and the pod's events`,
			func(w *world) { w.claims = []*v1alpha1.IPClaim{claimFor("data", "eth1", "10.20.254.5")} }, "eth1 data"},
		"a fixed address that another pod has still": {`[{"name": "management", "ifname": "eth1", "sticky": true}]`, `interface eth1 is not changed yet: address 10.10.254.5 of network "management" is in use still by interface net1 of pod /, container other: it goes free with that container`,
			func(w *world) { delete(w.leases, "other/net1") }, "eth1 management"},
		"another network": {"backup@eth1", `interface eth1 is not changed yet: network "backup" does not exist`,
			func(w *world) { w.networks["backup"] = ready("backup", v1alpha1.PluginMacvlan, "10.40.0.0/16", "") }, "eth1 backup"},
		"a setting": {tuned, `interface eth1 is not changed yet: network "data": sysctl net.ipv4.conf.IFNAME.rp_filter is not in the network's allowedSysctls`,
			func(w *world) {
				w.networks["data"].Spec.AllowedSysctls = []v1alpha1.SysctlName{"net.ipv4.conf.IFNAME.rp_filter"}
			}, "eth1 data"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFixedWorld(t)
			w.claims = []*v1alpha1.IPClaim{claimFor("management", "eth1", "10.10.254.5")}
			w.leases["other/net1"] = netip.MustParseAddr("10.10.254.5")
			if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
				t.Fatal(err)
			}
			before := w.links.String()
			for range 2 {
				if w.ask(t, "c1", test.asked) {
					t.Error("it is not tried again")
				}
				if diff := cmp.Diff(before, w.links.String()); diff != "" {
					t.Errorf("links (-before +after):\n%s", diff)
				}
			}
			if diff := cmp.Diff([]string{"refused: " + test.want}, w.events); diff != "" {
				t.Error(diff)
			}
			test.mends(w)
			if !w.ask(t, "c1", test.asked) {
				t.Error("not done")
			}
			if diff := cmp.Diff([]string{test.then}, w.interfaces(t, "c1")); diff != "" || before == w.links.String() {
				t.Errorf("it is not changed: %s\n%s", diff, w.links.String())
			}
		})
	}
}

// What a pod gives up is its own to have again, also where there is no other.
func TestAnInterfaceTakesItsOwnPlace(t *testing.T) {
	w := newFixedWorld(t)
	w.full = nil
	w.claims = []*v1alpha1.IPClaim{claimFor("data", "eth2", "10.20.254.5")}
	const before, after = `[{"name": "full", "ifname": "eth1"%[1]s}, {"name": "data", "ifname": "eth2", "sticky": true%[1]s}]`, `, "mtu": 1400`
	if err := w.add(t.Context(), "c1", fmt.Sprintf(before, "")); err != nil {
		t.Fatal(err)
	}
	removed := false
	w.step = func(name string) {
		if removed = removed || name == "before delete"; removed {
			w.full = nil // what it has given up
		}
	}
	w.full = []string{"full"}
	if !w.ask(t, "c1", fmt.Sprintf(before, after)) {
		t.Errorf("events %q", w.events)
	}
	if got := strings.Count(w.links.String(), "mtu 1400"); got != 2 {
		t.Errorf("%d interfaces are changed:\n%s", got, w.links)
	}
}

func failing(operation string) func(string) error {
	return func(now string) error {
		if now == operation {
			return errors.New("injected")
		}
		return nil
	}
}

func TestOneInterfaceThatCannotBeAddedDoesNotHinderTheOthers(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
		t.Fatal(err)
	}
	if w.ask(t, "c1", "full@eth2,management@eth3") {
		t.Error("it is not tried again")
	}
	if diff := cmp.Diff([]string{"eth3 management"}, w.interfaces(t, "c1")); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(w.events, `refused: interface eth2 on network "full" is not added yet: network "full" has no free address on this node`) {
		t.Errorf("events %q", w.events)
	}
}

// The address of an interface that cannot be removed is not free.
func TestHotUnplugFreesTheAddressAfterTheLink(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
		t.Fatal(err)
	}
	w.links.FailOn = failing("delete eth1")
	if w.ask(t, "c1", "") {
		t.Error("it is not tried again")
	}
	if len(w.leases) != 1 || w.uses["c1"] != "data=1" || w.reported["c1"] != 0 {
		t.Errorf("leases %v, reported %d, %s", w.leases, w.reported["c1"], w.uses["c1"])
	}
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err == nil || len(w.leases) != 1 {
		t.Errorf("DEL: %v, leases %v", err, w.leases)
	}
	w.links.FailOn = nil
	if !w.ask(t, "c1", "") || len(w.leases) > 0 || w.uses["c1"] != "" {
		t.Errorf("leases %v, reported %s", w.leases, w.uses["c1"])
	}
	if diff := cmp.Diff([]string(nil), w.interfaces(t, "c1")); diff != "" {
		t.Error(diff)
	}
}

// The runtime may know of a newer annotation than the agent's cache.
func TestACacheThatIsBehindTheRuntimeTakesNothingAway(t *testing.T) {
	w := newWorld(t)
	w.asked["pod-c1"], w.askedLive["pod-c1"] = "data@eth1", "data@eth1,management@eth2"
	if err := w.add(t.Context(), "c1", "data@eth1,management@eth2"); err != nil {
		t.Fatal(err)
	}
	if !w.look(t.Context(), "uid-c1") {
		t.Error("not done")
	}
	if diff := cmp.Diff([]string{"eth1 data", "eth2 management"}, w.interfaces(t, "c1")); diff != "" {
		t.Error(diff)
	}
	delete(w.askedLive, "pod-c1") // it was changed
	if !w.look(t.Context(), "uid-c1") {
		t.Error("not done")
	}
	if diff := cmp.Diff([]string{"eth1 data"}, w.interfaces(t, "c1")); diff != "" {
		t.Error(diff)
	}
}

func TestPodsThatAreNotOursToChangeStayAsTheyAre(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"old", "gone", "other"} {
		if err := w.add(t.Context(), id, "data@eth1"); err != nil {
			t.Fatal(err)
		}
	}
	old, _ := w.sandbox("old")
	earlier := *old
	earlier.Asked = nil // a record of an earlier version
	if err := w.remember(&earlier); err != nil {
		t.Fatal(err)
	}
	w.asked["pod-old"] = ""
	w.asked["pod-other"] = "data@eth1"
	for _, id := range []string{"old", "gone", "other", "never there"} {
		if !w.look(t.Context(), types.UID("uid-"+id)) {
			t.Errorf("%s: not done", id)
		}
	}
	w.restore(t.Context())
	if len(w.leases) != 3 || len(w.events) > 0 || w.uses["old"] != "unknown" || w.uses["gone"] != "data=1" {
		t.Errorf("leases %v, events %q, reported %v", w.leases, w.events, w.uses)
	}
}

// A DEL does not wait for a hot plug that waits for an address.
func TestDelGoesBeforeHotPlug(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
		t.Fatal(err)
	}
	working, unlock, err := w.busy.lockYielding(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-working.Done()
		unlock()
	}()
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err != nil {
		t.Fatal(err)
	}
	// Who waits already when the lock is taken counts, too.
	held, err := w.busy.lock(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan context.Context, 1)
	go func() {
		working, unlock, err := w.busy.lockYielding(context.Background(), "c1")
		if err == nil {
			defer unlock()
		}
		got <- working
	}()
	waiting := make(chan error, 1)
	eventually(t, "the yielding one waits", func() bool { w.busy.mu.Lock(); defer w.busy.mu.Unlock(); return w.busy.holders["c1"].users == 2 })
	go func() {
		unlock, err := w.busy.lock(context.Background(), "c1")
		if err == nil {
			unlock()
		}
		waiting <- err
	}()
	eventually(t, "another waits", func() bool { w.busy.mu.Lock(); defer w.busy.mu.Unlock(); return w.busy.holders["c1"].users == 3 })
	held()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	<-got
	if len(w.busy.holders) > 0 {
		t.Errorf("left: %v", w.busy.holders)
	}
}

// With the server running: the annotation changes while ADD is under way, and
// again afterwards.
func TestServingPodsFollowTheirAnnotation(t *testing.T) {
	w := serving(t)
	client := w.dial(t)
	sandbox := sandboxOf("c1")
	if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandbox, Networks: "data@eth1"}); err != nil {
		t.Fatal(err)
	}
	w.setAsked("c1", "data@eth1,management@eth2")
	if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandbox}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "eth2 is there", func() bool { return strings.Contains(w.links.String(), "/ns/c1: eth2 ") && w.leased() == 2 })
	if _, err := w.dial(t).Call(t.Context(), wire.Request{Op: wire.OpCheck, Sandbox: sandbox}); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	w.setAsked("c1", "management@eth2")
	w.PodChanged("uid-c1")
	eventually(t, "eth1 is gone", func() bool { return !strings.Contains(w.links.String(), "/ns/c1: eth1 ") && w.leased() == 1 })
	w.setAsked("c1", "management@eth2,full@eth3")
	w.PodChanged("uid-c1")
	eventually(t, "the pod is told", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.ContainsFunc(w.events, func(e string) bool { return strings.Contains(e, `network "full" has no free address`) })
	})
	if _, err := w.dial(t).Call(t.Context(), wire.Request{Op: wire.OpDel, Sandbox: sandbox}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * plugAgainFirst) // the next try finds nobody
	if w.leased() > 0 || strings.Contains(w.links.String(), "/ns/c1") || len(w.files(t)) > 0 {
		t.Errorf("after DEL: %d addresses, %v\n%s", w.leased(), w.files(t), w.links.String())
	}
}

func (w *world) setAsked(id, networks string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked["pod-"+id] = networks
}

func TestFixedAddressIsPluggedWhenItsClaimIsThere(t *testing.T) {
	w := newWorld(t)
	w.networks["data"].Spec.StaticRange = "10.20.254.0/24"
	if err := w.add(t.Context(), "c1", "data@eth1"); err != nil {
		t.Fatal(err)
	}
	const asked = "[{name: data, ifname: eth1}, {name: data, ifname: eth2, ips: [10.20.254.5]}]"
	if w.ask(t, "c1", asked) || !strings.Contains(fmt.Sprint(w.events), "no IPClaim gives pod default/pod-c1 its fixed address on this node yet") {
		t.Errorf("events %q", w.events)
	}
	w.claims = append(w.claims, claimFor("data", "eth2", "10.20.254.5"))
	if !w.ask(t, "c1", asked) || w.uses["c1"] != "data=1+1" {
		t.Errorf("reported %s, events %q", w.uses["c1"], w.events)
	}
	record, _ := w.sandbox("c1")
	if got := record.Interfaces[1]; got.Name != "eth2" || got.Addresses[0].String() != "10.20.254.5/16" {
		t.Errorf("got %v", got)
	}
}

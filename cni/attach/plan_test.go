// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
)

func requests(t *testing.T, annotation string) []podnetworks.Request {
	t.Helper()
	if annotation == "" {
		return nil
	}
	out, err := podnetworks.Parse(annotation)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPlanOfAChange(t *testing.T) {
	const eth0 = "eth0 is made with the pod, whose IP it has; make the pod anew"
	const route = "the pod's default route is set when the pod is made; make the pod anew"
	for name, test := range map[string]struct {
		have, asked     string
		remove, add     []string
		refusedContains []string
	}{
		"nothing":                 {"data@eth1", "data@eth1", nil, nil, nil},
		"the same in YAML":        {"management@eth0,data", "- name: management\n  ifname: eth0\n- name: data\n  ifname: net1", nil, nil, nil},
		"another spelling":        {"[{name: data, mac: '0A:00:00:00:00:01', ips: [10.0.0.5, 'fd00::5']}]", "[{name: data, mac: '0a-00-00-00-00-01', ips: ['fd00:0::5', 10.0.0.5/24]}]", nil, nil, nil},
		"another order":           {"data@eth1,backup@eth2", "backup@eth2,data@eth1", nil, nil, nil},
		"one more":                {"data@eth1", "data@eth1,backup@eth2", nil, []string{"backup@eth2"}, nil},
		"one less":                {"data@eth1,backup@eth2", "data@eth1", []string{"eth2"}, nil, nil},
		"none":                    {"data@eth1,backup@eth2", "", []string{"eth1", "eth2"}, nil, nil},
		"from none":               {"", "data@eth1", nil, []string{"data@eth1"}, nil},
		"another network":         {"data@eth1", "backup@eth1", []string{"eth1"}, []string{"backup@eth1"}, nil},
		"another MAC":             {"data@eth1", "[{name: data, ifname: eth1, mac: '0a:00:00:00:00:01'}]", []string{"eth1"}, []string{"data@eth1"}, nil},
		"another MTU":             {"data@eth1", "[{name: data, ifname: eth1, mtu: 1400}]", []string{"eth1"}, []string{"data@eth1"}, nil},
		"another sysctl":          {"[{name: data, ifname: eth1, sysctls: {net.ipv4.conf.IFNAME.rp_filter: 0}}]", "[{name: data, ifname: eth1, sysctls: {net.ipv4.conf.IFNAME.rp_filter: 2}}]", []string{"eth1"}, []string{"data@eth1"}, nil},
		"no sysctls in a list":    {"data@eth1", "[{name: data, ifname: eth1, sysctls: {}}]", nil, nil, nil},
		"a fixed address":         {"data@eth1", "[{name: data, ifname: eth1, sticky: true}]", []string{"eth1"}, []string{"data@eth1"}, nil},
		"exchanged":               {"data@eth1,backup@eth2", "backup@eth1,data@eth2", []string{"eth1", "eth2"}, []string{"backup@eth1", "data@eth2"}, nil},
		"eth0 goes":               {"management@eth0,data@eth1", "data@eth1", nil, nil, []string{"interface eth0 on network \"management\" stays as it is: " + eth0}},
		"eth0 comes":              {"data@eth1", "management@eth0", []string{"eth1"}, nil, []string{"interface eth0 on network \"management\" is not added: " + eth0}},
		"eth0 changes":            {"management@eth0", "data@eth0,data@eth1", nil, []string{"data@eth1"}, []string{"interface eth0 on network \"management\" stays as it is: " + eth0}},
		"the default route comes": {"", "[{name: data, ifname: eth1, defaultRoute: true}]", nil, nil, []string{"interface eth1 on network \"data\" is not added: " + route}},
		"the default route goes":  {"[{name: data, ifname: eth1, defaultRoute: true}]", "", nil, nil, []string{"interface eth1 on network \"data\" stays as it is: " + route}},
		"the default route moves": {"data@eth1", "[{name: data, ifname: eth1, defaultRoute: true}]", nil, nil, []string{"interface eth1 stays on network \"data\": " + route}},
	} {
		t.Run(name, func(t *testing.T) {
			got := planChange(requests(t, test.have), requests(t, test.asked))
			var added []string
			for _, r := range got.add {
				added = append(added, r.Name+"@"+r.IfName)
			}
			if diff := cmp.Diff([][]string{test.remove, test.add, test.refusedContains}, [][]string{got.remove, added, got.refused}, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("remove, add, refused (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInterfacesOfOtherPluginsStayAsTheyAre(t *testing.T) {
	got := planChange(requests(t, "data@eth1,flannel@eth2,flannel@eth3"), requests(t, "flannel@eth2"), "eth2", "eth3")
	want := []string{`interface eth3 on network "flannel" stays as it is: a plugin that is not built in makes its interface together with the pod; make the pod anew`}
	if diff := cmp.Diff(want, got.refused); diff != "" || !slices.Equal(got.remove, []string{"eth1"}) {
		t.Errorf("removes %v, refuses %s", got.remove, diff)
	}
}

// What another annotation has asked for is none of ours.
func TestInterfacesOfOtherAnnotationsAreLeftAlone(t *testing.T) {
	have := append(requests(t, "data@eth1"), podnetworks.Request{Name: "default/flannel", IfName: "net1"})
	if got := planChange(have, requests(t, "data@eth1"), "net1"); !settled(got) {
		t.Errorf("got %v", got)
	}
	got := planChange(have, requests(t, "backup@net1"), "net1")
	want := []string{`interface net1 on network "backup" is not added: the pod has an interface of that name for default/flannel`}
	if diff := cmp.Diff(want, got.refused); diff != "" || !slices.Equal(got.remove, []string{"eth1"}) || len(got.add) > 0 {
		t.Errorf("got %v: %s", got, diff)
	}
	sandbox := &Sandbox{Asked: have, Interfaces: []link.Interface{{Name: "eth1"}}, Delegates: []string{"net1"}}
	if got := podnetworks.FormatAttached(sandbox.uses()); got != "data=1" {
		t.Errorf("counted as %s", got)
	}
}

// Carrying a plan out leaves exactly what is asked for, but for what it refuses,
// and there is nothing to do then.
func TestPlansLeadToWhatIsAskedFor(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	some := func() []podnetworks.Request {
		var items []string
		for _, ifname := range []string{"eth0", "eth1", "eth2", "eth3"} {
			if rng.IntN(3) == 0 {
				continue
			}
			items = append(items, fmt.Sprintf("{name: n%d, ifname: %s, defaultRoute: %v, sticky: %v}", rng.IntN(3), ifname, len(items) == 0 && rng.IntN(4) == 0, rng.IntN(2) == 0))
		}
		if len(items) == 0 {
			return nil
		}
		return requests(t, "["+strings.Join(items, ", ")+"]")
	}
	byName := func(a, b podnetworks.Request) int { return strings.Compare(a.IfName, b.IfName) }
	for range 5000 {
		have, asked := some(), some()
		plan := planChange(have, asked)
		after := slices.DeleteFunc(slices.Clone(have), func(r podnetworks.Request) bool { return slices.Contains(plan.remove, r.IfName) })
		after = append(after, plan.add...)
		slices.SortFunc(after, byName)
		for i := 1; i < len(after); i++ {
			if after[i].IfName == after[i-1].IfName {
				t.Fatalf("%v to %v: two interfaces %s", have, asked, after[i].IfName)
			}
		}
		if again := planChange(after, asked); !again.empty() || len(again.refused) != len(plan.refused) {
			t.Fatalf("%v to %v: then %v", have, asked, again)
		}
		if len(plan.refused) > 0 {
			continue
		}
		slices.SortFunc(asked, byName)
		if diff := cmp.Diff(asked, after, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%v to %v: %s", have, asked, diff)
		}
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// library has one configuration for every Network but "missing".
type library string

func (l library) Configuration(network *v1alpha1.Network) (*delegate.Conf, error) {
	if network.Name == "missing" {
		return nil, errors.New("the node has no such plugin")
	}
	return delegate.Parse([]byte(l), network.Name)
}

func (l library) Network(name string) (*delegate.Conf, error) {
	if name != "on-disk" {
		return nil, fs.ErrNotExist
	}
	return delegate.Parse([]byte(l), name)
}

func (l library) Installed(conf *delegate.Conf) error {
	if slices.Contains(conf.Types(), "absent") {
		return errors.New("the node has no such plugin")
	}
	return nil
}

const plainConf = `{"type":"ptp","ipam":{"type":"host-local"}}`

// newDelegateWorld has a delegated Network with our addresses and one without.
func newDelegateWorld(t *testing.T, conf string) *world {
	t.Helper()
	w := newWorld(t)
	w.networks["routed"] = ready("routed", "ptp", "10.40.0.0/16", "fd00:10:40::/64")
	w.networks["overlay"] = ready("overlay", "Flannel", "", "")
	w.networks["missing"] = ready("missing", "calico", "", "")
	w.deps.Delegates, w.deps.Foreign = library(conf), w.links
	return w
}

// prepared is what the binary is told to execute.
func (w *world) prepared(t *testing.T, id, networks string) ([]wanted, []wire.Delegate, error) {
	t.Helper()
	sandbox := sandboxOf(id)
	all, err := w.prepare(t.Context(), &sandbox, networks, nil)
	if err != nil {
		return nil, nil, err
	}
	out, err := delegates(all)
	return all, out, err
}

func TestDelegatesAreToldWhatToExecute(t *testing.T) {
	for name, test := range map[string]struct {
		conf, networks string
		change         func(*world)
		want           []string
	}{
		"our addresses beside eth0": {
			conf: plainConf, networks: "routed@net1",
			want: []string{`net1 {"cniVersion":"1.0.0","name":"routed","plugins":[{"ipam":{"type":"netplane","addresses":[{"address":"10.40.0.2/16","gateway":"10.40.0.1"},{"address":"fd00:10:40::a28:2/64","gateway":"fd00:10:40::a28:1"}]},"type":"ptp"}]}`},
		},
		"the plugin's own addresses": {
			conf: plainConf, networks: "overlay",
			want: []string{`net1 {"cniVersion":"1.0.0","name":"overlay","plugins":[{"ipam":{"type":"host-local"},"type":"ptp"}]}`},
		},
		"a MAC address where the plugin takes one": {
			conf: `{"type":"bridge","capabilities":{"mac":true}}`, networks: "[{name: overlay, ifname: a, mac: 0A:00:00:00:00:01}]",
			want: []string{`a {"cniVersion":"1.0.0","name":"overlay","plugins":[{"capabilities":{"mac":true},"type":"bridge"}]} mac "0a:00:00:00:00:01"`},
		},
		"on eth0 with the Network's gateway, routes and DNS": {
			conf: `{"type":"ptp"}`, networks: "data@net1,overlay@net2,routed@eth0",
			change: func(w *world) {
				spec := &w.networks["routed"].Spec
				spec.Subnet6, spec.Gateway = "", "10.40.255.1"
				spec.AdditionalSubnets = []v1alpha1.CIDR{"10.41.0.0/16"}
				spec.Routes = []v1alpha1.Route{{To: "10.0.0.0/8", Via: "10.40.255.2"}, {To: "fd00::/8"}}
				spec.DNS = &v1alpha1.DNS{Nameservers: []v1alpha1.IP{"10.40.0.53"}, Search: []string{"example.org"}}
			},
			want: []string{
				`eth0 primary {"cniVersion":"1.0.0","name":"routed","plugins":[{"ipam":{"type":"netplane","addresses":[{"address":"10.40.0.2/16","gateway":"10.40.255.1"}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.0.0.0/8","gw":"10.40.255.2"},{"dst":"10.41.0.0/16"}],"dns":{"nameservers":["10.40.0.53"],"search":["example.org"]}},"type":"ptp"}]}`,
				`net2 {"cniVersion":"1.0.0","name":"overlay","plugins":[{"type":"ptp"}]}`,
			},
		},
		"on eth0 while another has the default route": {
			conf: `{"type":"ptp"}`, networks: "[{name: data, defaultRoute: true}, {name: routed, ifname: eth0}]",
			change: func(w *world) {
				w.networks["data"].Spec.Gateway = "10.20.0.9"
				w.networks["routed"].Spec.Subnet6 = ""
			},
			want: []string{`eth0 primary {"cniVersion":"1.0.0","name":"routed","plugins":[{"ipam":{"type":"netplane","addresses":[{"address":"10.40.0.2/16","gateway":"10.40.0.1"}]},"type":"ptp"}]}`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDelegateWorld(t, test.conf)
			if test.change != nil {
				test.change(w)
			}
			_, told, err := w.prepared(t, "c1", test.networks)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range told {
				text := d.IfName
				if d.Primary {
					text += " primary"
				}
				text += " " + string(d.Config)
				for key, value := range d.RuntimeConfig {
					text += " " + key + " " + string(value)
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRequestsThatNoDelegateCanServe(t *testing.T) {
	for networks, want := range map[string]string{
		"missing": `network "missing": the node has no such plugin`,
		"[{name: overlay, mac: 0a:00:00:00:00:01}]":   `no plugin of CNI network "overlay" declares the capability mac`,
		"[{name: overlay, ips: [10.0.0.5]}]":          `network "overlay" has no subnet, so that plugin "Flannel" gives its addresses`,
		"[{name: overlay, sticky: true}]":             `network "overlay" has no subnet`,
		"[{name: overlay, ifname: x}, {name: full}]":  `network "full" has no free address on this node`,
		"[{name: overlay, ifname: x}, {name: other}]": `network "other" does not exist`,
	} {
		w := newDelegateWorld(t, plainConf)
		if _, _, err := w.prepared(t, "c1", networks); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", networks, err, want)
		}
	}
	t.Run("refused by the node", func(t *testing.T) {
		w := newDelegateWorld(t, plainConf)
		w.refused["overlay"] = "no such plugin"
		_, _, err := w.prepared(t, "c1", "overlay")
		if err == nil || !strings.Contains(err.Error(), `this node cannot serve network "overlay": no such plugin`) {
			t.Error(err)
		}
	})
	t.Run("no NIC", func(t *testing.T) {
		w := newDelegateWorld(t, plainConf)
		w.parents = nil
		_, _, err := w.prepared(t, "c1", "overlay")
		if err == nil || !strings.Contains(err.Error(), `no NIC of this node backs physical network "phy-net0" of network "overlay"`) {
			t.Error(err)
		}
	})
	t.Run("an agent without delegates", func(t *testing.T) {
		w := newDelegateWorld(t, plainConf)
		w.deps.Delegates = nil
		_, _, err := w.prepared(t, "c1", "overlay")
		if err == nil || !strings.Contains(err.Error(), `runs no plugin "Flannel"`) {
			t.Error(err)
		}
	})
}

const (
	routedResult  = `{"cniVersion":"1.1.0","interfaces":[{"name":"veth9"},{"name":"net1","mac":"0a:00:00:00:00:09","mtu":1400,"sandbox":"/ns/c1"}],"ips":[{"interface":1,"address":"10.40.0.2/16"},{"interface":1,"address":"fd00:10:40::a28:2/64"}]}`
	overlayResult = `{"cniVersion":"1.1.0","interfaces":[{"name":"net2","sandbox":"/ns/c1"}],"ips":[{"interface":0,"address":"10.244.1.7/24","gateway":"10.244.1.1"}],"routes":[{"dst":"10.0.0.0/8","gw":"10.244.1.3"},{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.96.0.10"]}}`
)

func TestDelegatesStandInStatusAndRecord(t *testing.T) {
	w := newDelegateWorld(t, plainConf)
	all, _, err := w.prepared(t, "c1", "routed@net1,data@net3,overlay@net2")
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(all, []wire.DelegateResult{{IfName: "net2", Result: []byte(overlayResult)}, {IfName: "net1", Result: []byte(routedResult)}}); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf("c1")
	made, raw, err := w.commit(t.Context(), &sandbox, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range made.Attachments {
		got = append(got, strings.Join([]string{a.Name, a.Interface, strings.Join(a.IPs, "+"), strings.Join(a.Gateway, "+")}, " "))
	}
	want := []string{"routed net1 10.40.0.2+fd00:10:40::a28:2 ", "data net3 10.20.0.2 ", "overlay net2 10.244.1.7 10.244.1.1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if first := made.Attachments[0]; first.MAC != "0a:00:00:00:00:09" || first.MTU != 1400 || made.Attachments[2].DNS == nil {
		t.Errorf("got %+v", made.Attachments)
	}
	if diff := cmp.Diff([]string{"net1", "net2"}, made.Delegates); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(string(raw), "net1") || !strings.Contains(string(raw), "net3") {
		t.Errorf("the result of the built-in interfaces: %s", raw)
	}
	for _, name := range []string{"net1", "net2"} {
		if !strings.Contains(w.links.String(), name+" foreign, default routes behind others") {
			t.Errorf("default routes of %s were left in force:\n%s", name, w.links)
		}
	}
	if err := w.del(t.Context(), &sandbox); err != nil || len(w.leases) > 0 {
		t.Errorf("%v, addresses left: %v", err, w.leases)
	}
}

func TestResultsThatCannotBeTaken(t *testing.T) {
	for name, test := range map[string]struct {
		results []wire.DelegateResult
		want    string
	}{
		"none":            {nil, `has no result of plugin "ptp" for net1`},
		"no result":       {[]wire.DelegateResult{{IfName: "net1", Result: []byte("{")}}, "reading the result"},
		"no gateway":      {[]wire.DelegateResult{{IfName: "net1", Result: []byte(routedResult)}, {IfName: "net2", Result: []byte(`{"cniVersion":"1.1.0"}`)}}, `network "overlay" has no gateway, which defaultRoute on net2 needs`},
		"other addresses": {[]wire.DelegateResult{{IfName: "net1", Result: []byte(overlayResult)}}, `did not give net1 the address 10.40.0.2 of the Network: use a Network without subnet`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDelegateWorld(t, plainConf)
			all, _, err := w.prepared(t, "c1", "[{name: routed}, {name: overlay, defaultRoute: true}]")
			if err != nil {
				t.Fatal(err)
			}
			if err := deliver(all, test.results); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestDefaultRouteOverADelegate(t *testing.T) {
	w := newDelegateWorld(t, plainConf)
	all, _, err := w.prepared(t, "c1", "[{name: routed, ifname: net1}, {name: overlay, ifname: net2, defaultRoute: true}]")
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(all, []wire.DelegateResult{{IfName: "net2", Result: []byte(overlayResult)}, {IfName: "net1", Result: []byte(routedResult)}}); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf("c1")
	made, _, err := w.commit(t.Context(), &sandbox, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(w.links.String(), "net2 default via [10.244.1.1] keep [10.96.0.0/16]") || strings.Contains(w.links.String(), "net1 default") {
		t.Errorf("got\n%s", w.links)
	}
	if diff := cmp.Diff([]string{"10.244.1.1"}, made.Attachments[1].Gateway); diff != "" {
		t.Error(diff)
	}
}

func TestInterfaceThatThePluginDidNotMake(t *testing.T) {
	w := newDelegateWorld(t, plainConf)
	w.links.FailOn = func(operation string) error {
		if operation == "adopt net1" {
			return errors.New("no such interface")
		}
		return nil
	}
	all, _, err := w.prepared(t, "c1", "routed@net1,data@net2")
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(all, []wire.DelegateResult{{IfName: "net1", Result: []byte(routedResult)}}); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf("c1")
	_, _, err = w.commit(t.Context(), &sandbox, all, nil)
	if err == nil || !strings.Contains(err.Error(), "interface net1: no such interface") {
		t.Errorf("got %v", err)
	}
	// What the plugin has made all the same is the binary's to remove: its address
	// stays in use until then.
	if files := w.files(t); len(files) > 0 || len(w.leases) != 1 || strings.Contains(w.links.String(), "net2") {
		t.Errorf("left: %v %v\n%s", files, w.leases, w.links)
	}
	if err := w.del(t.Context(), &sandbox); err != nil || len(w.files(t)) > 0 || len(w.leases) > 0 {
		t.Errorf("%v, left: %v %v", err, w.files(t), w.leases)
	}
}

// A plugin may give a pod a device that is no network interface: its result then
// names none.
func TestPluginWithoutAnInterface(t *testing.T) {
	const elsewhere = `{"cniVersion":"1.0.0","interfaces":[{"name":"host0"}]}`
	for name, test := range map[string]struct{ result, want string }{
		"none told":        {`{"cniVersion":"1.0.0"}`, ""},
		"of the host only": {elsewhere, ""},
		"told, but absent": {`{"cniVersion":"1.0.0","interfaces":[{"name":"absent0","sandbox":"/ns/c1"}]}`, "interface absent0: looking for absent0"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDelegateWorld(t, plainConf)
			all, _, err := w.prepared(t, "c1", "overlay@absent0")
			if err != nil {
				t.Fatal(err)
			}
			if err := deliver(all, []wire.DelegateResult{{IfName: "absent0", Result: []byte(test.result)}}); err != nil {
				t.Fatal(err)
			}
			sandbox := sandboxOf("c1")
			_, _, err = w.commit(t.Context(), &sandbox, all, nil)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// What a result of an older version does not tell is read from the interface.
func TestStatusOfOldResultsIsComplete(t *testing.T) {
	for name, test := range map[string]struct {
		result, mac string
		mtu         int
	}{
		"1.1":                 {`{"cniVersion":"1.1.0","interfaces":[{"name":"net1","mac":"0a:00:00:00:00:01","mtu":1300,"sandbox":"/ns/c1"}]}`, "0a:00:00:00:00:01", 1300},
		"1.0":                 {`{"cniVersion":"1.0.0","interfaces":[{"name":"net1","mac":"0a:00:00:00:00:01","sandbox":"/ns/c1"}]}`, "0a:00:00:00:00:01", 1450},
		"without interfaces":  {`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24"}]}`, link.FakeMAC("net1"), 1450},
		"without its sandbox": {`{"cniVersion":"1.0.0","interfaces":[{"name":"net1"}]}`, link.FakeMAC("net1"), 1450},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDelegateWorld(t, plainConf)
			all, _, err := w.prepared(t, "c1", "overlay@net1")
			if err != nil {
				t.Fatal(err)
			}
			if err := deliver(all, []wire.DelegateResult{{IfName: "net1", Result: []byte(test.result)}}); err != nil {
				t.Fatal(err)
			}
			sandbox := sandboxOf("c1")
			made, _, err := w.commit(t.Context(), &sandbox, all, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := made.Attachments[0]; got.MAC != test.mac || got.MTU != test.mtu {
				t.Errorf("got MAC %s MTU %d, want %s, %d", got.MAC, got.MTU, test.mac, test.mtu)
			}
		})
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// shelf has NetworkAttachmentDefinitions by namespace/name; nil is a cluster
// without the kind.
type shelf map[string]string

func (s shelf) Config(_ context.Context, namespace, name string) (string, error) {
	if s == nil {
		return "", &meta.NoKindMatchError{}
	}
	text, ok := s[namespace+"/"+name]
	switch {
	case !ok:
		return "", apierrors.NewNotFound(schema.GroupResource{Resource: "network-attachment-definitions"}, name)
	case text == "away":
		return "", errors.New("the API server is away")
	}
	return text, nil
}

func newNADWorld(t *testing.T) *world {
	t.Helper()
	w := newDelegateWorld(t, `{"type":"bridge"}`)
	w.config.NADPluginTypes = []string{"bridge", "host-local"}
	w.deps.Definitions = shelf{
		"default/plain":      `{"cniVersion":"0.4.0","name":"own-name","type":"bridge","ipam":{"type":"host-local"}}`,
		"default/able":       `{"plugins":[{"type":"bridge","capabilities":{"ips":true,"mac":true,"portMappings":true,"bandwidth":true,"infinibandGUID":true},"args":{"cni":{"a":1},"b":2}}]}`,
		"default/on-disk":    "",
		"default/nowhere":    "",
		"other/plain":        `{"type":"bridge"}`,
		"kube-system/egress": `{"type":"bridge"}`,
		"default/evil":       `{"type":"bridge","ipam":{"type":"evil"}}`,
		"default/chain":      `{"plugins":[{"type":"bridge"},{"type":"evil"}]}`,
		"default/nested":     `{"type":"bridge","delegate":{"deep":[{"type":"evil"}]}}`,
		"default/shouting":   `{"type":"bridge","IPAM":{"TYPE":"evil"}}`,
		"default/number":     `{"type":"bridge","ipam":{"type":7}}`,
		"default/ours":       `{"name":"netplane","type":"bridge"}`,
		"default/broken":     `{`,
		"default/away":       "away",
	}
	return w
}

// selects is what the binary is told to execute for a pod that asks by NPWG.
func (w *world) selects(t *testing.T, annotation string, npwg wire.NPWG) ([]wanted, []string, error) {
	t.Helper()
	sandbox := sandboxOf("c1")
	all, err := w.prepare(t.Context(), &sandbox, annotation, &npwg)
	if err != nil {
		return nil, nil, err
	}
	told, err := delegates(all)
	var out []string
	for _, d := range told {
		text := d.Network + " " + d.IfName
		if d.Primary {
			text += " primary"
		}
		text += " " + string(d.Config)
		var given []string
		for key, value := range d.RuntimeConfig {
			given = append(given, " "+key+"="+string(value))
		}
		slices.Sort(given)
		out = append(out, text+strings.Join(given, ""))
	}
	return all, out, err
}

func TestPodsThatAskByNetworkAttachmentDefinitions(t *testing.T) {
	for name, test := range map[string]struct {
		annotation string
		npwg       wire.NPWG
		want       []string
	}{
		"the comma list": {
			npwg: wire.NPWG{Networks: "plain, other/plain@data0,on-disk"},
			want: []string{
				`default/plain net1 {"cniVersion":"0.4.0","name":"own-name","plugins":[{"ipam":{"type":"host-local"},"type":"bridge"}]}`,
				`other/plain data0 {"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge"}]}`,
				`default/on-disk net3 {"cniVersion":"1.0.0","name":"on-disk","plugins":[{"type":"bridge"}]}`,
			},
		},
		"all that a plugin can be given": {
			npwg: wire.NPWG{Networks: `[{"name":"able","ips":["10.0.0.5/24"],"mac":"C2:B0:57:49:47:F1","portMappings":[{"hostPort":1}],"bandwidth":{"ingressRate":2},"infiniband-guid":"c2:11:22:33:44:55:66:77","cni-args":{"c":3}}]`},
			want: []string{
				`default/able net1 {"cniVersion":"1.0.0","name":"able","plugins":[{"args":{"b":2,"cni":{"a":1,"c":3}},"capabilities":{"bandwidth":true,"infinibandGUID":true,"ips":true,"mac":true,"portMappings":true},"type":"bridge"}]}` +
					` bandwidth={"ingressRate":2} infinibandGUID="c2:11:22:33:44:55:66:77" ips=["10.0.0.5/24"] mac="c2:b0:57:49:47:f1" portMappings=[{"hostPort":1}]`,
			},
		},
		"beside Networks": {
			annotation: "data,overlay", npwg: wire.NPWG{Networks: "other/plain"},
			want: []string{
				`overlay net2 {"cniVersion":"1.0.0","name":"overlay","plugins":[{"type":"bridge"}]}`,
				`other/plain net3 {"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge"}]}`,
			},
		},
		"in the place of the cluster's network": {
			npwg: wire.NPWG{Default: "egress", Networks: "other/plain"},
			want: []string{
				`kube-system/egress eth0 primary {"cniVersion":"1.0.0","name":"egress","plugins":[{"type":"bridge"}]}`,
				`other/plain net1 {"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"bridge"}]}`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, got, err := newNADWorld(t).selects(t, test.annotation, test.npwg)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNetworkAttachmentDefinitionsThatAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		annotation string
		npwg       wire.NPWG
		change     func(*world)
		want       string
	}{
		"no plugin type is allowed": {npwg: wire.NPWG{Networks: "plain"}, change: func(w *world) { w.config.NADPluginTypes = nil }, want: "allow these no plugin: see their flag --nad-plugin-types"},
		"the kind is missing":       {npwg: wire.NPWG{Networks: "plain"}, change: func(w *world) { w.deps.Definitions = shelf(nil) }, want: "does not have this kind: install its CRD"},
		"it does not exist":         {npwg: wire.NPWG{Networks: "none"}, want: "NetworkAttachmentDefinition default/none does not exist"},
		"it cannot be read":         {npwg: wire.NPWG{Networks: "away"}, want: "the API server is away"},
		"nothing on disk":           {npwg: wire.NPWG{Networks: "nowhere"}, want: `no spec.config, and the node no CNI configuration of network "nowhere"`},
		"an IPAM type":              {npwg: wire.NPWG{Networks: "evil"}, want: `plugin type "evil" is not among those`},
		"a type in the chain":       {npwg: wire.NPWG{Networks: "chain"}, want: `plugin type "evil" is not among those`},
		"a type deep inside":        {npwg: wire.NPWG{Networks: "nested"}, want: `plugin type "evil" is not among those`},
		"a type in capitals":        {npwg: wire.NPWG{Networks: "shouting"}, want: `plugin type "evil" is not among those`},
		"a type that is a number":   {npwg: wire.NPWG{Networks: "number"}, want: "cannot unmarshal number"},
		"netplane's own name":       {npwg: wire.NPWG{Networks: "ours"}, want: `the name "netplane" is netplane's own`},
		"no JSON":                   {npwg: wire.NPWG{Networks: "broken"}, want: "NetworkAttachmentDefinition default/broken: reading CNI configuration"},
		"not installed": {npwg: wire.NPWG{Networks: "plain"}, change: func(w *world) {
			w.config.NADPluginTypes = []string{"absent"}
			w.deps.Definitions = shelf{"default/plain": `{"type":"absent"}`}
		}, want: "default/plain: the node has no such plugin"},
		"another namespace, isolated": {npwg: wire.NPWG{Networks: "other/plain"}, change: func(w *world) { w.config.NADNamespaceIsolation = true }, want: "of another namespace than the pod"},
		"a malformed list":            {npwg: wire.NPWG{Networks: "a/b/c"}, want: "annotation k8s.v1.cni.cncf.io/networks: item 1"},
		"a name that is taken":        {annotation: "data@x", npwg: wire.NPWG{Networks: "plain@x"}, want: `the pod has an interface "x" already`},
		"two on eth0":                 {annotation: "data@eth0", npwg: wire.NPWG{Default: "egress"}, want: "annotation v1.multus-cni.io/default-network: annotation netplane.io/networks has a network on eth0 already"},
		"two in the cluster's place":  {npwg: wire.NPWG{Default: "egress,egress"}, want: "it names more than one network"},
		"two default routes":          {annotation: "[{name: overlay, defaultRoute: true}]", npwg: wire.NPWG{Networks: `[{"name":"plain","default-route":["10.0.0.1"]}]`}, want: "default-route is already asked for"},
		"ips without the capability":  {npwg: wire.NPWG{Networks: `[{"name":"plain","ips":["10.0.0.5"]}]`}, want: "no plugin declares the capability ips"},
		"mac without the capability":  {npwg: wire.NPWG{Networks: `[{"name":"plain","mac":"c2:b0:57:49:47:f1"}]`}, want: "no plugin declares the capability mac"},
		"an IPAM claim":               {npwg: wire.NPWG{Networks: `[{"name":"plain","ipam-claim-reference":"vm"}]`}, want: "ipam-claim-reference is for netplane's own Networks"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newNADWorld(t)
			if test.change != nil {
				test.change(w)
			}
			_, _, err := w.selects(t, test.annotation, test.npwg)
			var known *wire.Error
			if !errors.As(err, &known) || !strings.Contains(known.Msg, test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if len(w.leases) > 0 {
				t.Errorf("addresses left: %v", w.leases)
			}
		})
	}
}

func TestNamespacesMayBeIsolated(t *testing.T) {
	w := newNADWorld(t)
	w.config.NADNamespaceIsolation = true
	if _, got, err := w.selects(t, "", wire.NPWG{Networks: "default/plain", Default: "egress"}); err != nil || len(got) != 2 {
		t.Errorf("of its own namespace, and the admin's for eth0: %v, %v", got, err)
	}
	w.config.NADGlobalNamespaces = []string{"shared", "other"}
	if _, got, err := w.selects(t, "", wire.NPWG{Networks: "other/plain"}); err != nil || len(got) != 1 {
		t.Errorf("of a namespace for all: %v, %v", got, err)
	}
}

func TestSelectionWithDefaultRoute(t *testing.T) {
	for name, test := range map[string]struct {
		hops string
		want []string
	}{
		"of both families": {`"10.244.1.9","fd00::1"`, []string{"10.244.1.9", "fd00::1"}},
		"of one family, the plugin has a router of the other": {`"fd00::1"`, []string{"fd00::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newNADWorld(t)
			w.config.PodCIDRs = prefixesOf("10.244.0.0/16", "fd00:244::/56")
			all, _, err := w.selects(t, "", wire.NPWG{Networks: `[{"name":"plain","interface":"net2","default-route":[` + test.hops + `]}]`})
			if err != nil {
				t.Fatal(err)
			}
			if err := deliver(all, []wire.DelegateResult{{IfName: "net2", Result: []byte(overlayResult)}}); err != nil {
				t.Fatal(err)
			}
			sandbox := sandboxOf("c1")
			made, _, err := w.commit(t.Context(), &sandbox, all, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(w.links.String(), fmt.Sprintf("net2 default via %v keep [10.96.0.0/16 10.244.0.0/16 fd00:244::/56]", test.want)) {
				t.Errorf("got\n%s", w.links)
			}
			entry := made.Attachments[0]
			if entry.Name != "default/plain" || entry.Interface != "net2" || !slices.Equal(entry.Gateway, test.want) || !slices.Equal(entry.IPs, []string{"10.244.1.7"}) {
				t.Errorf("got %+v", entry)
			}
		})
	}
}

// What the interfaces of NetworkAttachmentDefinitions are made for stands beside
// the Networks in the pod's record: hot plug is for the Networks only.
func TestHotPlugBesideNetworkAttachmentDefinitions(t *testing.T) {
	w := newNADWorld(t)
	w.networks["backup"] = ready("backup", v1alpha1.PluginMacvlan, "10.50.0.0/16", "")
	all, _, err := w.selects(t, "data@eth1", wire.NPWG{Networks: "plain@net1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := deliver(all, []wire.DelegateResult{{IfName: "net1", Result: []byte(overlayResult)}}); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf("c1")
	made, _, err := w.commit(t.Context(), &sandbox, all, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.report(made)
	for _, step := range []struct {
		ask    string
		have   []string
		uses   string
		events []string
	}{
		{"data@eth1", []string{"data eth1", "default/plain net1"}, "data=1", nil},
		{"data@eth1,backup@eth2", []string{"data eth1", "default/plain net1", "backup eth2"}, "backup=1,data=1", []string{`plugged: added eth2 on network "backup"`}},
		{"backup@eth2", []string{"default/plain net1", "backup eth2"}, "backup=1", []string{"plugged: removed eth1"}},
		{"backup", []string{"default/plain net1"}, "", []string{
			"plugged: removed eth2",
			`refused: interface net1 on network "backup" is not added: the pod has an interface of that name for default/plain`,
		}},
		{"", []string{"default/plain net1"}, "", nil},
		{"data@eth1", []string{"default/plain net1", "data eth1"}, "data=1", []string{`plugged: added eth1 on network "data"`}},
	} {
		w.events = nil
		if !w.ask(t, "c1", step.ask) {
			t.Errorf("%q: not done", step.ask)
		}
		record, _ := w.sandbox("c1")
		var have []string
		for _, a := range record.Attachments {
			have = append(have, a.Name+" "+a.Interface)
		}
		if diff := cmp.Diff(step.have, have); diff != "" {
			t.Errorf("%q: %s", step.ask, diff)
		}
		if diff := cmp.Diff(step.events, w.events); diff != "" {
			t.Errorf("%q: %s", step.ask, diff)
		}
		if w.uses["c1"] != step.uses {
			t.Errorf("%q: counts for %q, want %q", step.ask, w.uses["c1"], step.uses)
		}
	}
	if err := w.del(t.Context(), &sandbox); err != nil || len(w.leases) > 0 || len(w.files(t)) > 0 {
		t.Errorf("after DEL (%v): %v %v", err, w.leases, w.files(t))
	}
}

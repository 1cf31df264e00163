// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestWhatCallsOurs: whoever wraps such a configuration goes round in a circle.
func TestWhatCallsOurs(t *testing.T) {
	for name, test := range map[string]struct {
		conf string
		want bool
	}{
		"a list of ours":                  {`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"netplane"}]}`, true},
		"behind another":                  {`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"},{"type":"netplane"}]}`, true},
		"Multus with our list inside":     {`{"cniVersion":"1.1.0","name":"n","type":"multus","delegates":[{"name":"netplane","plugins":[{"type":"netplane","wrapped":{}}]}]}`, true},
		"Multus with our plugin inside":   {`{"cniVersion":"1.1.0","name":"n","type":"multus","delegates":[{"type":"netplane"}]}`, true},
		"Multus in Multus":                {`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"multus","delegates":[{"type":"multus","delegates":[{"type":"netplane"}]}]}]}`, true},
		"a plugin that calls one":         {`{"cniVersion":"1.1.0","name":"n","type":"flannel","delegate":{"type":"netplane"}}`, true},
		"by the list's name":              {`{"cniVersion":"1.1.0","name":"n","type":"multus-shim","clusterNetwork":"netplane"}`, true},
		"by the file's path":              {`{"cniVersion":"1.1.0","name":"n","type":"multus-shim","clusterNetwork":"/host/etc/cni/net.d/00-netplane.conflist"}`, true},
		"as one of several":               {`{"cniVersion":"1.1.0","name":"n","type":"multus","clusterNetwork":"flannel","defaultNetworks":["sriov","netplane"]}`, true},
		"Multus with another":             {`{"cniVersion":"1.1.0","name":"n","type":"multus","clusterNetwork":"flannel","delegates":[{"type":"flannel"}]}`, false},
		"a network of a similar name":     {`{"cniVersion":"1.1.0","name":"netplane-2","type":"multus","clusterNetwork":"netplane-2"}`, false},
		"addresses from ours, as any one": {`{"cniVersion":"1.1.0","name":"n","type":"bridge","ipam":{"type":"host-local"}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			file := "20-x.conf"
			if strings.Contains(test.conf, `"plugins":[{"type"`) && !strings.Contains(test.conf, `"type":"multus","delegates":[{"name"`) {
				file = "20-x.conflist"
			}
			n.write(file, test.conf)
			if err := n.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := n.installed() == nil; got != test.want {
				t.Errorf("it is taken for a configuration that calls ours: %v, want %v", got, test.want)
			}
		})
	}
}

const (
	multusWithOurs    = `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","clusterNetwork":"/host/etc/cni/net.d/00-netplane.conflist"}`
	multusWithCluster = `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus-shim","clusterNetwork":"/host/etc/cni/net.d/10-cluster.conflist"}`
)

// TestSyncBesideMultus: netplane is never called by what it calls, and the node
// says when the runtime does not call it at all.
func TestSyncBesideMultus(t *testing.T) {
	for name, test := range map[string]struct {
		files             map[string]string
		wraps, bypassedBy string
		underMultus       bool
	}{
		"alone":                       {files: map[string]string{"10-cluster.conflist": bridged}, wraps: "cluster"},
		"Multus is wrapped":           {files: map[string]string{"05-multus.conf": multusWithCluster, "10-cluster.conflist": bridged}, wraps: "multus-cni-network"},
		"Multus calls us":             {files: map[string]string{"00-multus.conf": multusWithOurs, "10-cluster.conflist": bridged}, wraps: "cluster", underMultus: true},
		"Multus calls us, behind us":  {files: map[string]string{"05-multus.conf": multusWithOurs, "10-cluster.conflist": bridged}, wraps: "cluster"},
		"Multus calls us alone":       {files: map[string]string{"00-multus.conf": multusWithOurs}},
		"Multus passes us by":         {files: map[string]string{"00-multus.conf": multusWithCluster, "10-cluster.conflist": bridged}, wraps: "cluster", bypassedBy: "00-multus.conf"},
		"Multus alone passes us by":   {files: map[string]string{"00-multus.conf": multusWithCluster}, bypassedBy: "00-multus.conf"},
		"another sorts before ours":   {files: map[string]string{"00-a.conf": single, "10-cluster.conflist": bridged}, wraps: "cluster", bypassedBy: "00-a.conf"},
		"a copy of ours is the first": {files: map[string]string{"00-a.conflist": `{"cniVersion":"1.1.0","name":"old","plugins":[{"type":"netplane"}]}`, "10-cluster.conflist": bridged}, wraps: "cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			bypassedBy := "not told"
			n.config.Bypassed = func(file string) { bypassedBy = file }
			for file, content := range test.files {
				n.write(file, content)
			}
			for range 2 { // the second time our own file is there
				if err := n.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			got := n.installed()
			if diff := cmp.Diff(test.wraps != "", got != nil); diff != "" {
				t.Fatal(diff)
			}
			if got != nil && (!strings.Contains(string(got.Wrapped), `"name":"`+test.wraps+`"`) || got.UnderMultus != test.underMultus) {
				t.Errorf("under Multus: %v, wrapped: %s", got.UnderMultus, got.Wrapped)
			}
			if bypassedBy != test.bypassedBy {
				t.Errorf("bypassed by %q, want %q", bypassedBy, test.bypassedBy)
			}
			select {
			case <-n.Installed():
			default:
				t.Error("Installed is not closed: the agent would never be ready")
			}
		})
	}
	t.Run("and it ends", func(t *testing.T) {
		n := newNode(t)
		bypassedBy := ""
		n.config.Bypassed = func(file string) { bypassedBy = file }
		n.write("10-cluster.conflist", bridged)
		for _, multus := range []string{multusWithCluster, multusWithOurs} {
			n.write("00-multus.conf", multus)
			if err := n.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if bypassedBy != "" {
			t.Errorf("still bypassed by %q", bypassedBy)
		}
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

// fourNetworks is a pod's annotation; eth0 is a port of a bridge.
const fourNetworks = "n0@eth0,n1,n2,n3"

// newBusyWorld has the networks of fourNetworks, both families.
func newBusyWorld(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	for i := range 4 {
		plugin := v1alpha1.PluginMacvlan
		if i == 0 {
			plugin = v1alpha1.PluginBridge
		}
		name := fmt.Sprintf("n%d", i)
		w.networks[name] = ready(name, plugin, v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/16", 100+i)), v1alpha1.CIDR(fmt.Sprintf("fd00:%d::/64", i)))
	}
	return w
}

// BenchmarkAddAndDel is the agent's own part of one pod's ADD and DEL, records
// on disk included: no kernel, no addresses, no API server.
func BenchmarkAddAndDel(b *testing.B) {
	w := newBusyWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		addAndDel(b, w)
	}
}

func addAndDel(t testing.TB, w *world) {
	t.Helper()
	if err := w.add(t.Context(), "c1", fourNetworks); err != nil {
		t.Fatal(err)
	}
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err != nil {
		t.Fatal(err)
	}
	w.order = w.order[:0]
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/serviceproxy"
)

// clusterIPs notes what the Server asks of it.
type clusterIPs struct {
	w     *world
	calls []string
	err   error
}

func (c *clusterIPs) Ensure(_ context.Context, pod serviceproxy.Pod) error {
	links := strings.Contains(c.w.links.String(), pod.NetNS+": ")
	c.calls = append(c.calls, fmt.Sprintf("ensure %v, has links: %t, listed: %v", pod, links, c.w.ServicePods()))
	return c.err
}

func (c *clusterIPs) Notify() { c.calls = append(c.calls, "notify") }
func (c *clusterIPs) Left()   { c.calls = append(c.calls, fmt.Sprint("left ", c.w.ServicePods())) }

func newClusterIPWorld(t *testing.T) (*world, *clusterIPs) {
	t.Helper()
	w := newWorld(t)
	w.networks["data"].Spec.ServiceProxy = v1alpha1.ServiceProxyInPod
	c := &clusterIPs{w: w}
	w.deps.ClusterIPs = c
	if got := w.ServicePods(); got != nil {
		t.Errorf("pods %v before the records are read", got)
	}
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, c
}

func TestRulesOfClusterIPsComeAfterTheLinksOfAPod(t *testing.T) {
	w, c := newClusterIPWorld(t)
	if err := w.add(t.Context(), "c1", "management@eth0,data@eth1"); err != nil {
		t.Fatal(err)
	}
	pod := "{c1 /ns/c1 [{management eth0 [10.10.0.2 fd00:10:10::a0a:2]} {data eth1 [10.20.0.2]}]}"
	want := []string{fmt.Sprintf("ensure %s, has links: true, listed: [%s]", pod, pod)}
	if diff := cmp.Diff(want, c.calls); diff != "" {
		t.Error(diff)
	}
	c.calls = nil
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"left []"}, c.calls); diff != "" {
		t.Error(diff)
	}
}

func TestPodsOnOtherNetworksGetNoRulesOfClusterIPs(t *testing.T) {
	w, c := newClusterIPWorld(t)
	if err := w.add(t.Context(), "c1", "management@eth0"); err != nil {
		t.Fatal(err)
	}
	if len(c.calls) > 0 {
		t.Errorf("calls %v", c.calls)
	}
}

func TestAPodWithoutItsRulesDoesNotStart(t *testing.T) {
	w, c := newClusterIPWorld(t)
	c.err = errors.New("no nftables")
	if err := w.add(t.Context(), "c1", "data@eth1"); err == nil || !strings.Contains(err.Error(), "no nftables") {
		t.Errorf("error %v", err)
	}
	if left := w.links.String(); strings.Contains(left, "/ns/c1") || len(w.leases) > 0 {
		t.Errorf("left: %s, leases %v", left, w.leases)
	}
}

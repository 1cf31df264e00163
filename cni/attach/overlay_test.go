// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// overlays notes what the Server asks of it.
type overlays struct {
	server *Server
	calls  []string
	err    error
}

func (o *overlays) Ensure(_ context.Context, n *v1alpha1.Network) error {
	o.calls = append(o.calls, "ensure "+n.Name+" used "+strings.Join(o.server.OverlayBridges(), ","))
	return o.err
}

func (o *overlays) Notify() {
	o.calls = append(o.calls, "notify used "+strings.Join(o.server.OverlayBridges(), ","))
}

func (o *overlays) Devices() []string { return []string{"np-eth1"} }

func newOverlayWorld(t *testing.T) (*world, *overlays) {
	t.Helper()
	w := newWorld(t)
	w.networks["blue"] = ready("blue", v1alpha1.PluginVXLAN, "10.70.0.0/16", "")
	w.tunnel = link.Tunnel{Device: "eth1", Address: netip.MustParseAddr("192.168.0.1"), MTU: 1500}
	o := &overlays{server: w.Server}
	w.deps.Overlays = o
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, o
}

func TestAPodOnAVXLANIsPluggedToItsBridge(t *testing.T) {
	w, o := newOverlayWorld(t)
	if err := w.add(t.Context(), "c1", "blue@eth0"); err != nil {
		t.Fatal(err)
	}
	bridge := link.OverlayBridge("blue")
	got := w.links.String()
	for _, want := range []string{
		"/ns/c1: eth0 veth on " + bridge + " mac ", " mtu 1450 10.70.0.2/16", "route 0.0.0.0/0 via 10.70.0.1",
		"host: " + bridge + " route 10.70.0.2 src 10.70.0.1", "veth master " + bridge,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	sandbox := sandboxOf("c1")
	if err := w.del(t.Context(), &sandbox); err != nil {
		t.Fatal(err)
	}
	// The bridge is made once the record keeps it, and looked at when that is gone.
	if diff := cmp.Diff([]string{"ensure blue used " + bridge, "notify used "}, o.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestAPodWhoseSegmentFailsGetsNothing(t *testing.T) {
	w, o := newOverlayWorld(t)
	o.err = errors.New("no VNI")
	err := w.add(t.Context(), "c1", "management@net1,blue@net2")
	if err == nil || !strings.Contains(err.Error(), "no VNI") {
		t.Errorf("error %v, want the segment's", err)
	}
	if got := w.links.String(); strings.Contains(got, "/ns/c1") || len(w.leases) > 0 || len(w.files(t)) > 0 {
		t.Errorf("links\n%s\nleases %v, records %v", got, w.leases, w.files(t))
	}
}

func TestAVXLANLeavesRoomForItsHeaders(t *testing.T) {
	w, _ := newOverlayWorld(t)
	w.networks["blue"].Spec.MTU = 1451
	err := w.add(t.Context(), "c1", "blue@net1")
	if want := `mtu 1451 of network "blue" is larger than 1450, which the tunnel leaves of the 1500 of NIC eth1`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	w.networks["blue"].Spec.MTU = 1400
	if err := w.add(t.Context(), "c1", "blue@net1"); err != nil {
		t.Fatal(err)
	}
	if got := w.links.String(); !strings.Contains(got, " mtu 1400 ") {
		t.Errorf("the Network's MTU is not the pod's:\n%s", got)
	}
}

func TestTheBridgeBelowATunnelIsInUse(t *testing.T) {
	w, _ := newOverlayWorld(t)
	if diff := cmp.Diff([]string{"np-eth1"}, w.usedDevices()); diff != "" {
		t.Errorf("devices in use without any pod on them (-want +got):\n%s", diff)
	}
}

func TestNobodyIsAskedForAnAddressOnAVXLAN(t *testing.T) {
	w, _ := newOverlayWorld(t)
	w.networks["blue"].Spec.ConflictDetection = v1alpha1.ConflictDetectionProbe
	w.links.FailOn = func(operation string) error {
		if strings.HasPrefix(operation, "probe") {
			return errors.New("asked")
		}
		return nil
	}
	if err := w.add(t.Context(), "c1", "blue@net1"); err != nil {
		t.Error(err)
	}
}

func TestAPodOnAVXLANNeedsATunnelAddress(t *testing.T) {
	w, _ := newOverlayWorld(t)
	w.tunnel = link.Tunnel{}
	if err := w.add(t.Context(), "c1", "blue@net1"); err == nil || !strings.Contains(err.Error(), `no NIC of this node backs physical network "phy-net0"`) {
		t.Errorf("error %v", err)
	}
}

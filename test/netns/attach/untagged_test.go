// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"net"
	"slices"
	"testing"

	"github.com/netplane/netplane/cni/link"
)

// TestPodsSendNoFramesWithTags: without a spoof check, too, a pod must not reach
// into the VLANs of the bridge's NIC.
func TestPodsSendNoFramesWithTags(t *testing.T) {
	nodes, pod := wired(t, "node", "far"), newSpace(t, "pod")
	links := openLinks(t, nodes[0])
	bridge, err := links.EnsureBridge(t.Context(), "eth1")
	must(t, err)
	spec := specOf(link.KindVeth, "net1", "5")
	spec.Parent = bridge
	must(t, links.Add(t.Context(), pod.path, spec))
	wire := capture(t, nodes[1], "eth1")
	mac, err := net.ParseMAC(spec.MAC)
	must(t, err)
	frame := func(tag []byte, text string) []byte {
		out := slices.Concat([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, tag, []byte{0x88, 0xb5}, []byte(text)) // for experiments
		return append(out, make([]byte, 64-len(text))...)
	}
	marks := 0
	passes := func(tag ...byte) bool {
		marks++
		return arrives(t, pod, wire, frame(tag, "a frame with a tag "+string(rune('a'+marks))), frame(nil, "mark "+string(rune('a'+marks))))
	}
	tags := map[string][]byte{"802.1Q": {0x81, 0, 0, 100}, "802.1ad": {0x88, 0xa8, 0, 100}}
	for name, tag := range tags {
		if passes(tag...) {
			t.Errorf("a frame with a tag of %s passes", name)
		}
	}
	if !passes() {
		t.Error("a frame without a tag does not pass")
	}
	no, yes := func() bool { return false }, func() bool { return true }
	must(t, links.KeepUntagged(t.Context(), no))
	for name, tag := range tags {
		if !passes(tag...) {
			t.Errorf("the test proves nothing: %s never passes", name)
		}
	}
	for range 2 {
		must(t, links.KeepUntagged(t.Context(), yes))
	}
	if passes(tags["802.1Q"]...) {
		t.Error("a frame with a tag passes after the rules were made anew")
	}
	must(t, links.KeepUntagged(t.Context(), no))
	other := newSpace(t, "other")
	spec.HostEnd, spec.MAC = link.HostEndName("other", "net1"), "0a:01:0a:0a:00:07"
	must(t, links.Add(t.Context(), other.path, spec)) // the next port brings them back
	if passes(tags["802.1Q"]...) {
		t.Error("a frame with a tag passes after the next pod came")
	}
}

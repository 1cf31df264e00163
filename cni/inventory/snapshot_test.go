// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"testing"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestMappedIsReadInOneLine(t *testing.T) {
	got := mapped([]v1alpha1.NodePhysicalNetwork{
		{Name: "phy-net0", Interfaces: []string{"eth1", "eth3"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp},
		{Name: "phy-net1", Interfaces: []string{"eth2"}, Reason: v1alpha1.ReasonInterfaceDown},
	})
	if want := "phy-net0=eth1+eth3,phy-net1=eth2(InterfaceDown)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := mapped(nil); got != "" {
		t.Errorf("no mapping gives %q, want nothing", got)
	}
}

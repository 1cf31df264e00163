// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/api/vxlan"
)

// segment says what keeps a Network of plugin vxlan from having its segment, or
// nothing. A VNI belongs to one Network of the cluster, on whichever physical
// network: a node's kernel knows segments by VNI and port alone. The younger
// right waits, as with subnets.
func segment(network *v1alpha1.Network, overlays []v1alpha1.Network) (reason, message string) {
	own, err := vxlan.SettingsOf(network)
	if err != nil {
		return v1alpha1.ReasonInvalidSpec, "spec." + err.Error()
	}
	for i := range overlays {
		other := &overlays[i]
		settings, err := vxlan.SettingsOf(other)
		if err != nil || other.UID == network.UID || !own.Collides(settings) || !precedes(other, network) {
			continue
		}
		return v1alpha1.ReasonVNIConflict, fmt.Sprintf("Network %q has VNI %d on UDP port %d by an older right: name another with spec.pluginConfig.vni, from 1 to %d",
			other.Name, own.VNI, own.Port, vxlan.MaxVNI)
	}
	return "", ""
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"net/netip"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/capacity"
)

// named is an object of a name, told from an earlier one of that name.
type named struct {
	name string
	uid  types.UID
}

// block is an IPBlock as it is stored: what is read of it, and parsed once.
// There may be one for each node and Network, so Networks and Nodes, which many
// have in common, are stored once.
type block struct {
	name    string
	uid     types.UID
	version string // resourceVersion, by which informers tell changes from resyncs
	network unique.Handle[named]
	node    unique.Handle[named]
	cidr    netip.Prefix // zero if malformed
	leaving bool         // it is being released
}

func newBlock(object *v1alpha1.IPBlock) *block {
	cidr, err := netip.ParsePrefix(string(object.Spec.CIDR))
	if err != nil {
		cidr = netip.Prefix{} // serves nobody
	}
	return &block{
		name: object.Name, uid: object.UID, version: object.ResourceVersion,
		network: unique.Make(named{object.Spec.Network, object.Spec.NetworkUID}),
		node:    unique.Make(named{object.Spec.NodeName, object.Spec.NodeUID}),
		cidr:    cidr, leaving: object.DeletionTimestamp != nil,
	}
}

// GetObjectMeta returns a copy of what the informers' machinery asks for.
func (b *block) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Name: b.name, UID: b.uid, ResourceVersion: b.version}
}

func (b *block) networkName() string { return b.network.Value().name }

func (b *block) nodeName() string { return b.node.Value().name }

// supplies is what the block is to those who count.
func (b *block) supplies() capacity.Block {
	return capacity.Block{Network: b.network.Value().uid, Node: b.node.Value().uid, CIDR: b.cidr, Leaving: b.leaving}
}

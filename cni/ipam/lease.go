// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Owner is the interface that an address belongs to. ContainerID and IfName
// identify it: the CNI specification makes the pair unique while an attachment
// lives, and a sandbox that is made anew gets another container ID.
type Owner struct {
	PodUID       string `json:"podUID,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	ContainerID  string `json:"containerID"`
	IfName       string `json:"ifname"`
	// NetNS is the path of the pod's network namespace as the runtime gave it.
	NetNS string `json:"netns,omitempty"`
}

// Ask is a request for one address of a Network.
type Ask struct {
	Owner
	Network string
	// Fixed is the address of the Network's staticRange that an IPClaim gives the
	// pod; absent means one of the node's blocks.
	Fixed netip.Addr
	// NetworkUID is the Network's, beside Fixed: the node may hold nothing else
	// of it.
	NetworkUID types.UID
	// Anchor beside Fixed asks for a block of the node as well, whose first
	// address is the node's own in the Network: the interface is the pod's eth0.
	Anchor bool
}

// Lease is an address in use, and the record of it in the journal.
type Lease struct {
	Owner
	Network    string     `json:"network"`
	NetworkUID types.UID  `json:"networkUID,omitempty"`
	Address    netip.Addr `json:"address"`
	// Block is the block that the address is of. Of a fixed address it is the one
	// whose node address the pod's path leads over, if there is need of one.
	Block netip.Prefix `json:"block"`
	// Node is the node's own address in Block; absent if the pod needs no block.
	Node  netip.Addr `json:"node,omitzero"`
	Fixed bool       `json:"fixed,omitempty"`
	Since time.Time  `json:"since"`
}

// ownerKey identifies the interface that a lease belongs to.
type ownerKey struct{ containerID, ifname string }

// addrKey identifies an address. A Network of the same name but another UID
// shares the keys on purpose: its addresses are not given out while leases of
// the former one live.
type addrKey struct {
	network string
	address netip.Addr
}

func (o *Owner) key() ownerKey { return ownerKey{o.ContainerID, o.IfName} }
func (l *Lease) addr() addrKey { return addrKey{l.Network, l.Address} }

// keeps tells whether the lease keeps a block with this node.
func (l *Lease) keeps(block netip.Prefix) bool {
	return block.Contains(l.Address) || l.Fixed && l.Block == block
}

func (o *Owner) complete() bool { return o.ContainerID != "" && o.IfName != "" }

// valid says why a lease read from disk cannot be one.
func (l *Lease) valid() error {
	switch {
	case !l.complete() || l.Network == "":
		return errors.New("container ID, interface or network is missing")
	case l.Fixed && l.Address.IsValid():
		return nil
	case !l.Address.IsValid() || !l.Block.IsValid() || !l.Block.Contains(l.Address):
		return fmt.Errorf("address %s is not in block %s", l.Address, l.Block)
	}
	return nil
}

// NoAddressError says that a Network has no free address on this node. It is
// temporary: kubelet tries again.
type NoAddressError struct {
	Network string
	// InUse and Blocks are what the node has of the Network.
	InUse, Blocks int
	// Hint is why no further block could be claimed, if that is known.
	Hint string
}

// Error tells what is exhausted and what cures it.
func (e *NoAddressError) Error() string {
	text := fmt.Sprintf("network %q has no free address on this node: all %d addresses of the %d blocks that it holds are in use", e.Network, e.InUse, e.Blocks)
	if e.Blocks == 0 {
		text = fmt.Sprintf("network %q has no free address on this node: it holds no block of the network", e.Network)
	}
	if e.Hint != "" {
		return text + "; " + e.Hint
	}
	return text + "; a block is being claimed, the next attempt may succeed"
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package capacity counts addresses and NICs for the scheduler: what a node
// offers, what is in use on it, and whether a pod's demand fits. It is pure and
// keeps nothing between calls: whoever schedules sees the node through the
// NodeInfo that it was given, simulations included.
package capacity

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Count is a number of addresses in one network: of a node's blocks, and fixed
// ones, which are of no block.
type Count struct {
	Network   string
	Addresses int
	Fixed     int
	// Closed are those of Addresses that no interface has: blocks are closed for now.
	Closed int
}

// Demand is the number of addresses that one pod takes, once for each network,
// in the order of their names.
type Demand []Count

// NewDemand counts what a pod has, asks for, or takes.
func NewDemand(uses []podnetworks.Use) Demand {
	demand := make(Demand, len(uses))
	for i := range uses {
		demand[i] = Count{Network: uses[i].Network, Addresses: uses[i].Addresses, Fixed: uses[i].Fixed}
	}
	return demand
}

// Load is the number of addresses that are taken on one node, once for each
// network. A node's pods are on few networks: a slice is smaller than a map,
// and faster to search.
type Load []Count

// Of is what is taken of a network's blocks.
func (l Load) Of(network string) int {
	for i := range l {
		if l[i].Network == network {
			return l[i].Addresses
		}
	}
	return 0
}

// Interfaces is how many interfaces on a network there are: each has one
// address, of a block or fixed; those of closed blocks lie idle.
func (l Load) Interfaces(network string) int {
	for i := range l {
		if l[i].Network == network {
			return l[i].Addresses - l[i].Closed + l[i].Fixed
		}
	}
	return 0
}

func (l *Load) add(more Count) {
	for i := range *l {
		if (*l)[i].Network == more.Network {
			(*l)[i].Addresses += more.Addresses
			(*l)[i].Fixed += more.Fixed
			(*l)[i].Closed += more.Closed
			return
		}
	}
	*l = append(*l, more)
}

// AddPod counts a pod that is on the node, or is thought to be.
func (l *Load) AddPod(demand Demand) {
	for i := range demand {
		l.add(demand[i])
	}
}

// AddHeld counts addresses that the node's agent holds for nobody. An entry
// with a pod's UID counts only while that pod does not exist: if it does, it
// is counted by AddPod, or is the victim of a simulated preemption.
func (l *Load) AddHeld(held []v1alpha1.HeldAddresses, exists func(types.UID) bool) {
	for i := range held {
		if held[i].PodUID != "" && exists(held[i].PodUID) {
			continue
		}
		more := Count{Network: held[i].Network, Addresses: int(held[i].Count)}
		switch {
		case held[i].Fixed:
			more.Addresses, more.Fixed = 0, more.Addresses
		case held[i].Quarantined:
			more.Closed = more.Addresses
		}
		l.add(more)
	}
}

// Supply is what one node holds of one network.
type Supply struct {
	// Blocks that serve.
	Blocks int
	// Addresses that pods may have in them.
	Addresses int
}

// Block is what decides whether an IPBlock serves.
type Block struct {
	// Network and Node are the UIDs of those whose it is.
	Network, Node types.UID
	CIDR          netip.Prefix
	// Leaving: it is being released.
	Leaving bool
}

// AddBlock counts a block if it serves: it belongs to the Network and the Node
// with these UIDs (and not to older ones of the same names), it is one of the
// plan's, and it is not being released.
func (s *Supply) AddBlock(plan *addressing.Plan, network, node types.UID, block Block) {
	if block.Network != network || block.Node != node || block.Leaving || plan.CheckBlock(block.CIDR) != nil {
		return
	}
	s.Blocks++
	s.Addresses += plan.Capacity(block.CIDR)
}

// Fit is the answer to whether a demand fits.
type Fit int

// Answers of Supply.Fit and NICs.Fit.
const (
	// Fits: there are enough free.
	Fits Fit = iota
	// NoBlock: the node holds no block of the network.
	NoBlock
	// TooFew: the demand is larger than all that the node has, so that no
	// pod's end makes room.
	TooFew
	// Full: the node has enough, but not enough of them are free now.
	Full
)

// Fit tells whether demand more addresses can be taken where used are taken.
func (s Supply) Fit(used, demand int) Fit {
	switch {
	case demand == 0:
		return Fits
	case s.Blocks == 0:
		return NoBlock
	}
	return fit(s.Addresses, used, demand)
}

func fit(total, used, demand int) Fit {
	switch {
	case demand > total:
		return TooFew
	case used+demand > total:
		return Full
	}
	return Fits
}

// Utilisation is the part of the node's addresses, from 0 to 1, that is taken
// after a demand was placed.
func (s Supply) Utilisation(used, demand int) float64 {
	return utilisation(s.Addresses, used, demand)
}

func utilisation(total, used, demand int) float64 {
	if total <= 0 || used+demand >= total {
		return 1
	}
	return float64(max(0, used+demand)) / float64(total)
}

// NICs is the number of NICs behind one physical network that a node can give
// to pods as a whole.
type NICs int

// Fit tells whether demand more NICs can be taken where used are taken.
func (n NICs) Fit(used, demand int) Fit { return fit(int(n), used, demand) }

// Utilisation is the part of the NICs, from 0 to 1, that is taken after a
// demand was placed.
func (n NICs) Utilisation(used, demand int) float64 { return utilisation(int(n), used, demand) }

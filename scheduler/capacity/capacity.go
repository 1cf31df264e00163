// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package capacity counts addresses and NICs for the scheduler: what a node
// offers, what is in use on it, and whether a pod's demand fits. It is pure and
// keeps nothing between calls: whoever schedules sees the node through the
// NodeInfo that it was given, simulations included.
package capacity

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Count is a number of addresses in one network.
type Count struct {
	Network   string
	Addresses int
}

// Demand is the number of addresses that one pod takes, once for each network.
type Demand []Count

// NewDemand orders what a pod asks for by network.
func NewDemand(byNetwork map[string]int) Demand {
	demand := make(Demand, 0, len(byNetwork))
	for _, network := range slices.Sorted(maps.Keys(byNetwork)) {
		demand = append(demand, Count{Network: network, Addresses: byNetwork[network]})
	}
	return demand
}

// Load is the number of addresses that are taken on one node, once for each
// network. A node's pods are on few networks: a slice is smaller than a map,
// and faster to search.
type Load []Count

// Of is what is taken of a network.
func (l Load) Of(network string) int {
	for i := range l {
		if l[i].Network == network {
			return l[i].Addresses
		}
	}
	return 0
}

func (l *Load) add(network string, addresses int) {
	for i := range *l {
		if (*l)[i].Network == network {
			(*l)[i].Addresses += addresses
			return
		}
	}
	*l = append(*l, Count{Network: network, Addresses: addresses})
}

// AddPod counts a pod that is on the node, or is thought to be.
func (l *Load) AddPod(demand Demand) {
	for i := range demand {
		l.add(demand[i].Network, demand[i].Addresses)
	}
}

// AddHeld counts addresses that the node's agent holds for nobody. An entry
// with a pod's UID counts only while that pod does not exist: if it does, it
// is counted by AddPod, or is the victim of a simulated preemption. Fixed
// addresses lie in none of the node's blocks.
func (l *Load) AddHeld(held []v1alpha1.HeldAddresses, exists func(types.UID) bool) {
	for i := range held {
		if held[i].Fixed || held[i].PodUID != "" && exists(held[i].PodUID) {
			continue
		}
		l.add(held[i].Network, int(held[i].Count))
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

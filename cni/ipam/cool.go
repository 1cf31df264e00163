// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// freed is when an address was freed that still cools down.
type freed struct {
	Network string     `json:"network"`
	Address netip.Addr `json:"address"`
	At      time.Time  `json:"at"`
}

// cooling remembers when addresses were freed, for coolDown. The free lists
// order addresses by it as long as their block is there; this outlives the
// block's absence, and by way of the journal the agent's.
type cooling map[addrKey]time.Time

func (c cooling) add(leases []Lease, at time.Time) {
	for i := range leases {
		if !leases[i].Fixed {
			c[leases[i].addr()] = at
		}
	}
}

// forget drops what has cooled down.
func (c cooling) forget(now time.Time) {
	maps.DeleteFunc(c, func(_ addrKey, at time.Time) bool { return now.Sub(at) >= coolDown })
}

// list is what the journal keeps, the one freed first first.
func (c cooling) list() []freed {
	out := make([]freed, 0, len(c))
	for key, at := range c {
		out = append(out, freed{Network: key.network, Address: key.address, At: at})
	}
	slices.SortFunc(out, func(a, b freed) int {
		if order := a.At.Compare(b.At); order != 0 {
			return order
		}
		return a.Address.Compare(b.Address)
	})
	return out
}

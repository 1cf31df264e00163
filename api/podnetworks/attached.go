// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Use is how many interfaces a pod has, or asks for, on one network.
type Use struct {
	Network string
	// Addresses counts those with an address of the node's blocks.
	Addresses int
	// Fixed counts those whose address an IPClaim gives.
	Fixed int
}

// Uses counts requests by network, in the order of the networks' names.
func Uses(requests []Request) []Use {
	out := make([]Use, 0, len(requests))
	for i := range requests {
		r := &requests[i]
		at := slices.IndexFunc(out, func(u Use) bool { return u.Network == r.Name })
		if at < 0 {
			at, out = len(out), append(out, Use{Network: r.Name})
		}
		if r.Fixed() {
			out[at].Fixed++
		} else {
			out[at].Addresses++
		}
	}
	slices.SortFunc(out, compareUses)
	return out
}

func compareUses(a, b Use) int { return cmp.Compare(a.Network, b.Network) }

// Taken is what a pod takes of the networks: of each the larger of what its
// annotation asks for and what it has. For the annotation of a running pod may
// be changed, or taken away, and its interfaces follow later. Both are in the
// order of the networks' names, and so is the result.
func Taken(asked, attached []Use) []Use {
	out := make([]Use, 0, len(asked)+len(attached))
	for len(asked) > 0 && len(attached) > 0 {
		switch order := compareUses(asked[0], attached[0]); {
		case order < 0:
			out, asked = append(out, asked[0]), asked[1:]
		case order > 0:
			out, attached = append(out, attached[0]), attached[1:]
		default:
			out = append(out, Use{
				Network:   asked[0].Network,
				Addresses: max(asked[0].Addresses, attached[0].Addresses),
				Fixed:     max(asked[0].Fixed, attached[0].Fixed),
			})
			asked, attached = asked[1:], attached[1:]
		}
	}
	return append(append(out, asked...), attached...)
}

// FormatAttached writes the annotation netplane.io/attached-networks: one item
// for each network, such as data=2 or, of fixed addresses, data=2+1. Pods of one
// workload have the same text. Uses are in the order of the networks' names.
func FormatAttached(uses []Use) string {
	items := make([]string, len(uses))
	for i, u := range uses {
		items[i] = u.Network + "=" + strconv.Itoa(u.Addresses)
		if u.Fixed > 0 {
			items[i] += "+" + strconv.Itoa(u.Fixed)
		}
	}
	return strings.Join(items, ",")
}

// ParseAttached reads what FormatAttached has written; an empty text is nothing.
func ParseAttached(text string) ([]Use, error) {
	if text == "" {
		return nil, nil
	}
	var out []Use
	for item := range strings.SplitSeq(text, ",") {
		network, counts, ok := strings.Cut(item, "=")
		if !ok || checkName(network) != nil {
			return nil, fmt.Errorf("reading attached networks: %q is no item such as data=1", item)
		}
		addresses, fixed, hasFixed := strings.Cut(counts, "+")
		use := Use{Network: network}
		var err error
		if use.Addresses, err = count(addresses); err == nil && hasFixed {
			use.Fixed, err = count(fixed)
		}
		if err != nil {
			return nil, fmt.Errorf("reading attached networks: %q: %w", item, err)
		}
		if len(out) > 0 && compareUses(out[len(out)-1], use) >= 0 {
			return nil, fmt.Errorf("reading attached networks: %q is not in the order of names", item)
		}
		out = append(out, use)
	}
	return out, nil
}

// count reads a number of interfaces. A pod may have twice as many as it may
// ask for while all of them are replaced.
func count(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 8)
	if err == nil && n > 2*MaxRequests {
		err = fmt.Errorf("%d interfaces are more than a pod can have", n)
	}
	return int(n), err // #nosec G115 -- of 8 bits
}

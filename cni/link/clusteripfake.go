// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// SetClusterIPs replaces what a pod's rules say. The operation is told to FailOn
// as "clusterips /run/netns/x".
func (f *Fake) SetClusterIPs(_ context.Context, netns string, _, want *ClusterIPs) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("clusterips %s", netns); err != nil {
		return err
	}
	maps.DeleteFunc(f.lines, func(key, _ string) bool { return strings.HasPrefix(key, "vip/"+netns+" ") })
	for _, front := range slices.SortedFunc(maps.Keys(want.Balances), Frontend.Compare) {
		balance := want.Balances[front]
		answer := "refused"
		if len(balance.Backends) > 0 {
			answer = fmt.Sprint(balance.Backends)
		}
		if balance.Sticky > 0 {
			answer += " sticky " + balance.Sticky.String()
		}
		to := netip.AddrPortFrom(front.Address, front.Port)
		f.lines[fmt.Sprintf("vip/%s %d %s", netns, front.Protocol, to)] = fmt.Sprintf("%s: clusterip protocol %d %s -> %s", netns, front.Protocol, to, answer)
	}
	for to, way := range want.Routes {
		f.lines[fmt.Sprintf("vip/%s route %s", netns, to)] = fmt.Sprintf("%s: clusterip route %s dev %s src %s", netns, to, way.Interface, way.Source)
	}
	return nil
}

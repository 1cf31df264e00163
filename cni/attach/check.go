// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// check is CHECK: what the ADD answered (previous) is what the sandbox was
// given, and every interface is in the kernel as it was made.
func (s *Server) check(ctx context.Context, sandbox *wire.Sandbox, previous json.RawMessage) error {
	record, ok := s.sandbox(sandbox.ContainerID)
	if !ok || record.State != StateAttached { // of an ADD that failed there is nothing to check
		return fmt.Errorf("sandbox %s was given no networks by this agent", sandbox.ContainerID)
	}
	wrong, err := contradictions(record, previous)
	if err != nil {
		return err
	}
	for _, iface := range record.Interfaces {
		wrong = append(wrong, s.deps.PodLinks.Check(ctx, record.NetNS, iface))
	}
	return errors.Join(wrong...)
}

// contradictions are the points in which the runtime's result of the ADD is not
// what the record says. Interfaces of other plugins, in the result by way of the
// default network, are theirs to check.
func contradictions(record *Sandbox, previous json.RawMessage) ([]error, error) {
	if len(previous) == 0 {
		return nil, nil
	}
	var result current.Result
	if err := json.Unmarshal(previous, &result); err != nil {
		return nil, &wire.Error{Code: wire.CodeDecoding, Msg: "reading prevResult: " + err.Error()}
	}
	var wrong []error
	for i := range record.Interfaces {
		iface := &record.Interfaces[i]
		if slices.Contains(record.Plugged, iface.Name) {
			continue
		}
		at := indexOf(&result, iface.Name)
		if at < 0 {
			wrong = append(wrong, fmt.Errorf("prevResult lacks interface %s", iface.Name))
			continue
		}
		if told := result.Interfaces[at].Mtu; told != 0 && told != iface.MTU { // which 1.1.0 brought
			wrong = append(wrong, fmt.Errorf("prevResult has MTU %d for interface %s, not %d", told, iface.Name, iface.MTU))
		}
		if told := result.Interfaces[at].Mac; !strings.EqualFold(told, iface.MAC) {
			wrong = append(wrong, fmt.Errorf("prevResult has MAC %s for interface %s, not %s", told, iface.Name, iface.MAC))
		}
		if told := addressesOf(&result, at); !sameAddresses(told, iface) {
			wrong = append(wrong, fmt.Errorf("prevResult has addresses %v for interface %s, not %v", told, iface.Name, iface.Addresses))
		}
		wrong = append(wrong, wrongWays(&result, at, iface)...)
	}
	for _, name := range record.Delegates {
		if indexOf(&result, name) < 0 {
			wrong = append(wrong, fmt.Errorf("prevResult lacks interface %s", name))
		}
	}
	if len(record.Delegates) > 0 {
		return wrong, nil // they may have made more than one interface each, and have a say in DNS
	}
	wrong = append(wrong, wrongDNS(&result, record)...)
	for _, told := range result.Interfaces {
		given := slices.Contains(record.Plugged, told.Name) ||
			slices.ContainsFunc(record.Attachments, func(a podnetworks.Attachment) bool { return a.Interface == told.Name })
		if told.Sandbox != "" && !given {
			wrong = append(wrong, fmt.Errorf("prevResult has an interface %s that the sandbox was not given", told.Name))
		}
	}
	return wrong, nil
}

func indexOf(result *current.Result, name string) int {
	return slices.IndexFunc(result.Interfaces, func(r *current.Interface) bool { return r.Sandbox != "" && r.Name == name })
}

// wrongWays compares routes and gateways. A result does not tell over which interface
// a route leads, so that there may be more than the interface was given.
func wrongWays(result *current.Result, index int, iface *link.Interface) []error {
	var wrong []error
	for _, route := range iface.Routes {
		told := slices.ContainsFunc(result.Routes, func(r *cnitypes.Route) bool {
			return prefixOf(&r.Dst) == route.To && sameHop(r.GW, route.Via)
		})
		if !told {
			wrong = append(wrong, fmt.Errorf("prevResult lacks the %s of interface %s", route, iface.Name))
		}
		if route.To.Bits() > 0 || !route.Via.IsValid() {
			continue
		}
		for _, ip := range result.IPs {
			own := ip.Interface != nil && *ip.Interface == index && (ip.Address.IP.To4() != nil) == route.Via.Is4()
			if own && ip.Gateway != nil && !sameHop(ip.Gateway, route.Via) {
				wrong = append(wrong, fmt.Errorf("prevResult has gateway %s for interface %s, not %s", ip.Gateway, iface.Name, route.Via))
			}
		}
	}
	return wrong
}

// wrongDNS compares the DNS of an eth0 that is netplane's: of another the cluster's
// network has told.
func wrongDNS(result *current.Result, record *Sandbox) []error {
	ours := slices.ContainsFunc(record.Interfaces, func(i link.Interface) bool { return i.Name == podnetworks.PrimaryInterface })
	at := slices.IndexFunc(record.Attachments, func(a podnetworks.Attachment) bool { return a.Interface == podnetworks.PrimaryInterface })
	if !ours || at < 0 {
		return nil
	}
	var want podnetworks.AttachmentDNS
	if given := record.Attachments[at].DNS; given != nil {
		want = *given
	}
	if told := result.DNS; !slices.Equal(told.Nameservers, want.Nameservers) || !slices.Equal(told.Search, want.Search) {
		return []error{fmt.Errorf("prevResult has DNS servers %v and search %v, not %v and %v", told.Nameservers, told.Search, want.Nameservers, want.Search)}
	}
	return nil
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}

func sameHop(told net.IP, want netip.Addr) bool {
	addr, ok := netip.AddrFromSlice(told)
	return ok == want.IsValid() && (!ok || addr.Unmap() == want)
}

func addressesOf(result *current.Result, index int) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range result.IPs {
		if ip.Interface != nil && *ip.Interface == index {
			out = append(out, prefixOf(&ip.Address))
		}
	}
	return out
}

func sameAddresses(told []netip.Prefix, iface *link.Interface) bool {
	want := slices.SortedFunc(slices.Values(iface.Addresses), netip.Prefix.Compare)
	return slices.Equal(slices.SortedFunc(slices.Values(told), netip.Prefix.Compare), want)
}

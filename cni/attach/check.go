// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// check is CHECK: what the ADD answered (previous) is what the sandbox was
// given, and every interface is in the kernel as it was made.
func (s *Server) check(ctx context.Context, sandbox *wire.Sandbox, previous json.RawMessage) error {
	record, ok := s.sandbox(sandbox.ContainerID)
	if !ok {
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
		at := slices.IndexFunc(result.Interfaces, func(r *current.Interface) bool { return r.Sandbox != "" && r.Name == iface.Name })
		if at < 0 {
			wrong = append(wrong, fmt.Errorf("prevResult lacks interface %s", iface.Name))
			continue
		}
		if told := result.Interfaces[at].Mac; !strings.EqualFold(told, iface.MAC) {
			wrong = append(wrong, fmt.Errorf("prevResult has MAC %s for interface %s, not %s", told, iface.Name, iface.MAC))
		}
		if told := addressesOf(&result, at); !sameAddresses(told, iface) {
			wrong = append(wrong, fmt.Errorf("prevResult has addresses %v for interface %s, not %v", told, iface.Name, iface.Addresses))
		}
	}
	if len(record.Delegates) > 0 {
		return wrong, nil // they may have made more than one interface each
	}
	for _, told := range result.Interfaces {
		given := slices.Contains(record.Plugged, told.Name) ||
			slices.ContainsFunc(record.Attachments, func(a podnetworks.Attachment) bool { return a.Interface == told.Name })
		if told.Sandbox != "" && !given {
			wrong = append(wrong, fmt.Errorf("prevResult has an interface %s that the sandbox was not given", told.Name))
		}
	}
	return wrong, nil
}

func addressesOf(result *current.Result, index int) []netip.Prefix {
	var out []netip.Prefix
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if ip.Interface == nil || *ip.Interface != index || !ok {
			continue
		}
		ones, _ := ip.Address.Mask.Size()
		out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
	}
	return out
}

func sameAddresses(told []netip.Prefix, iface *link.Interface) bool {
	want := slices.SortedFunc(slices.Values(iface.Addresses), netip.Prefix.Compare)
	return slices.Equal(slices.SortedFunc(slices.Values(told), netip.Prefix.Compare), want)
}

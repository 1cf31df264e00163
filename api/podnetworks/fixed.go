// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxReference is the length of a DNS subdomain (RFC 1123), which names the
// objects that an ipam-claim-reference may stand for.
const maxReference = 253

// checkFixed validates what asks for a fixed address, and writes the addresses
// in their canonical form.
func checkFixed(r *Request) error {
	if err := checkIPs(r); err != nil {
		return err
	}
	if r.Sticky && r.IPAMClaimReference != "" {
		return errors.New("sticky and ipam-claim-reference exclude each other: the address follows the pod's name, or the reference")
	}
	if r.IPAMClaimReference == "" {
		return nil
	}
	if len(r.IPAMClaimReference) > maxReference {
		return fmt.Errorf("ipam-claim-reference has %d characters: a name has at most %d", len(r.IPAMClaimReference), maxReference)
	}
	for label := range strings.SplitSeq(r.IPAMClaimReference, ".") {
		if !isLabel(label) {
			return fmt.Errorf("ipam-claim-reference: %q is no name such as vm-1: it has lower case letters, digits, '-' and '.' only", r.IPAMClaimReference)
		}
	}
	return nil
}

func checkIPs(r *Request) error {
	if len(r.IPs) > 2 {
		return fmt.Errorf("ips has %d addresses: an interface has one, and in a dual-stack network the IPv6 address that follows from it", len(r.IPs))
	}
	var first netip.Addr
	for i, text := range r.IPs {
		addr, err := parseIP(text)
		if err != nil {
			return err
		}
		if i > 0 && addr.Is4() == first.Is4() {
			return fmt.Errorf("ips: %s and %s are of one family: an interface has one address of each", first, addr)
		}
		first = addr
		r.IPs[i] = addr.String()
	}
	return nil
}

// parseIP reads an address, with or without a prefix length.
func parseIP(text string) (netip.Addr, error) {
	bare, _, hasLength := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(bare)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("ips: %q is no IP address such as 10.10.254.5", text)
	}
	if addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("ips: %q has a zone: write the address alone", text)
	}
	if hasLength {
		if _, err := netip.ParsePrefix(text); err != nil {
			return netip.Addr{}, fmt.Errorf("ips: %q has no prefix length such as /24: write the address alone", text)
		}
	}
	return addr.Unmap(), nil
}

// sharesFixed tells whether another request of the pod is for the same fixed
// address: a claim answers both.
func (r *Request) sharesFixed(other Request) bool {
	if r.Name != other.Name {
		return false
	}
	return r.IPAMClaimReference != "" && r.IPAMClaimReference == other.IPAMClaimReference ||
		slices.ContainsFunc(r.IPs, func(ip string) bool { return slices.Contains(other.IPs, ip) })
}

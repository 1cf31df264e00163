// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package podnetworks reads and writes the two annotations that carry a pod's
// networks: netplane.io/networks (what the pod asks for) and
// k8s.v1.cni.cncf.io/network-status (what it got). It is pure.
package podnetworks

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// PrimaryInterface is the interface whose address is the pod IP. A request for
// it replaces the cluster's default network for that pod.
const PrimaryInterface = "eth0"

// Limits of one pod's annotation.
const (
	// MaxRequests bounds the interfaces of one pod.
	MaxRequests = 32
	// maxIfName is IFNAMSIZ less the terminating NUL (linux/if.h).
	maxIfName = 15
	// maxName is the length of a DNS label (RFC 1123).
	maxName = 63
)

// Request is one interface that a pod asks for.
type Request struct {
	// Name is the Network's name.
	Name string `json:"name"`
	// IfName is the interface's name in the pod; Parse fills in net1, net2, ...
	IfName string `json:"ifname,omitempty"`
	// IPs is a fixed address from the Network's staticRange; of a dual-stack
	// network the IPv6 address that follows from it may stand beside it. A
	// prefix length (10.10.254.5/24, NPWG v1.3 4.1.2.1.3) is dropped: it is the
	// subnet's. Parse leaves canonical addresses.
	IPs []string `json:"ips,omitempty"`
	// Sticky asks for an address that follows the pod's name, wherever and how
	// often a pod of this name starts.
	Sticky bool `json:"sticky,omitempty"`
	// IPAMClaimReference asks for the address that belongs to this name in the
	// pod's namespace, whatever the pod is called (NPWG v1.3 4.1.2.1.11).
	IPAMClaimReference string `json:"ipam-claim-reference,omitempty"`
	// MAC is a fixed hardware address.
	MAC string `json:"mac,omitempty"`
	// DefaultRoute makes the Network's gateway the pod's default route.
	DefaultRoute bool `json:"defaultRoute,omitempty"`
	// MTU is the largest packet in bytes that the interface is to carry, if it
	// shall carry less than the others on the Network.
	MTU int `json:"mtu,omitempty"`
	// Sysctls are settings of the interface by name, such as
	// net.ipv4.conf.IFNAME.rp_filter; the Network says which are allowed.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Tuned tells whether the request is for settings that a Network may refuse.
func (r *Request) Tuned() bool { return r.MTU != 0 || len(r.Sysctls) > 0 }

// Fixed tells whether the request is for an address of the Network's
// staticRange, which an IPClaim gives, instead of one of the node's.
func (r *Request) Fixed() bool {
	return len(r.IPs) > 0 || r.Sticky || r.IPAMClaimReference != ""
}

// Parse reads the annotation netplane.io/networks in either of its forms: a
// YAML (or JSON) list of items, or the short form
// management@eth0,data@eth1. It is strict: an error names the offending item
// and the cure. Every returned Request has an IfName.
func Parse(annotation string) ([]Request, error) {
	text := strings.TrimSpace(annotation)
	if text == "" {
		return nil, errors.New("the list is empty: name at least one network, such as management@eth0")
	}
	var requests []Request
	if text[0] == '-' || text[0] == '[' {
		if err := yaml.UnmarshalStrict([]byte(text), &requests); err != nil {
			return nil, fmt.Errorf("the list is no YAML list of {name, ifname, ips, sticky, ipam-claim-reference, mac, defaultRoute, mtu, sysctls}: %w", cleanYAML(err))
		}
	} else {
		var err error
		if requests, err = parseShort(text); err != nil {
			return nil, err
		}
	}
	if len(requests) == 0 {
		return nil, errors.New("the list is empty: name at least one network, such as management@eth0")
	}
	if len(requests) > MaxRequests {
		return nil, fmt.Errorf("%d networks are more than the %d that a pod may have", len(requests), MaxRequests)
	}
	if err := check(requests); err != nil {
		return nil, err
	}
	return requests, nil
}

// cleanYAML drops the library's own prefix, which means nothing to a user.
func cleanYAML(err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), "error unmarshaling JSON: while decoding JSON: "))
}

func parseShort(text string) ([]Request, error) {
	var out []Request
	for item := range strings.SplitSeq(text, ",") {
		name, ifname, named := strings.Cut(strings.TrimSpace(item), "@")
		if named && ifname == "" {
			return nil, fmt.Errorf("item %d (network %q): no ifname follows the '@': write one, such as %s@eth1, or leave out the '@'", len(out)+1, name, name)
		}
		out = append(out, Request{Name: name, IfName: ifname})
	}
	return out, nil
}

// check validates the items and names the interfaces that have no name.
func check(requests []Request) error {
	taken := make(map[string]int, len(requests))
	routed := -1
	for i := range requests {
		r := &requests[i]
		if err := checkItem(r); err != nil {
			return fmt.Errorf("item %d (network %q): %w", i+1, r.Name, err)
		}
		if r.IfName != "" {
			if first, ok := taken[r.IfName]; ok {
				return fmt.Errorf("item %d (network %q): ifname %q is already used by item %d", i+1, r.Name, r.IfName, first+1)
			}
			taken[r.IfName] = i
		}
		if first := slices.IndexFunc(requests[:i], r.sharesFixed); first >= 0 {
			return fmt.Errorf("item %d (network %q): its fixed address is already asked for by item %d: an address is one interface's", i+1, r.Name, first+1)
		}
		if r.DefaultRoute {
			if routed >= 0 {
				return fmt.Errorf("item %d (network %q): defaultRoute is already asked for by item %d; a pod has one", i+1, r.Name, routed+1)
			}
			routed = i
		}
	}
	nameRest(requests, taken)
	return nil
}

// nameRest gives net1, net2, ... to items without a name, passing over names
// that another item asked for.
func nameRest(requests []Request, taken map[string]int) {
	next := 1
	for i := range requests {
		for requests[i].IfName == "" {
			name := fmt.Sprintf("net%d", next)
			next++
			if _, ok := taken[name]; !ok {
				requests[i].IfName = name
			}
		}
	}
}

func checkItem(r *Request) error {
	if err := checkName(r.Name); err != nil {
		return err
	}
	if err := checkIfName(r.IfName); r.IfName != "" && err != nil {
		return err
	}
	if err := checkFixed(r); err != nil {
		return err
	}
	if err := checkTuned(r); err != nil {
		return err
	}
	return checkMAC(r)
}

func checkMAC(r *Request) error {
	if r.MAC == "" {
		return nil
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("mac: %q is no MAC address such as 0a:58:0a:0a:00:05", r.MAC)
	}
	if [6]byte(mac) == [6]byte{} {
		return fmt.Errorf("mac: %q is all zeros, which the kernel refuses", r.MAC)
	}
	if mac[0]&1 != 0 {
		return fmt.Errorf("mac: %q is a multicast address: its first octet must be even", r.MAC)
	}
	return nil
}

func checkName(name string) error {
	if name == "" {
		return errors.New("the network's name is missing")
	}
	if len(name) > maxName {
		return fmt.Errorf("the name has %d characters: a Network's name has at most %d", len(name), maxName)
	}
	if !isLabel(name) {
		return errors.New("the name is no DNS label: a Network's name has lower case letters, digits and '-' only")
	}
	return nil
}

// isLabel tells whether text consists of what a DNS label may (RFC 1123).
func isLabel(text string) bool {
	for i, c := range []byte(text) {
		inner := i > 0 && i < len(text)-1
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && inner {
			continue
		}
		return false
	}
	return text != ""
}

// checkIfName refuses what the kernel refuses (dev_valid_name in
// net/core/dev.c), and names that have another meaning in a pod.
func checkIfName(name string) error {
	switch {
	case len(name) > maxIfName:
		return fmt.Errorf("ifname %q has %d characters: the kernel allows %d", name, len(name), maxIfName)
	case name == "." || name == "..":
		return fmt.Errorf("ifname %q is refused by the kernel", name)
	case name == "lo" || name == "all" || name == "default":
		return fmt.Errorf("ifname %q has a meaning of its own in every pod: choose another", name)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c == '/' || c == ':' || c >= 0x7f || c == '%' || c == '@' {
			return fmt.Errorf("ifname %q has a character that an interface's name cannot have: use letters, digits, '-', '_' and '.'", name)
		}
	}
	return nil
}

// Demand counts the addresses that the requests take of each network. A
// request for a fixed address takes none of a node's blocks.
func Demand(requests []Request) map[string]int {
	out := make(map[string]int, len(requests))
	for i := range requests {
		if !requests[i].Fixed() {
			out[requests[i].Name]++
		}
	}
	return out
}

// Primary returns the request for eth0, or nil if the pod keeps the cluster's
// default network.
func Primary(requests []Request) *Request {
	for i := range requests {
		if requests[i].IfName == PrimaryInterface {
			return &requests[i]
		}
	}
	return nil
}

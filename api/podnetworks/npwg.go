// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Selection is one element of the annotation k8s.v1.cni.cncf.io/networks: one
// interface that a NetworkAttachmentDefinition describes (NPWG multi-network
// specification v1.3, 4.1).
type Selection struct {
	// Name and Namespace are the NetworkAttachmentDefinition's.
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
	// IfName is empty where the pod leaves the name to us, see NameSelections.
	IfName string `json:"interface,omitempty"`
	// IPs, with or without prefix length, and MAC are asked of the plugin.
	IPs []string `json:"ips,omitempty"`
	MAC string   `json:"mac,omitempty"`
	// InfinibandGUID is a port's GUID in hexadecimal.
	InfinibandGUID string `json:"infiniband-guid,omitempty"`
	// PortMappings and Bandwidth are handed to the plugin unread.
	PortMappings json.RawMessage `json:"portMappings,omitempty"`
	Bandwidth    json.RawMessage `json:"bandwidth,omitempty"`
	// CNIArgs become args.cni of the plugin's configuration.
	CNIArgs map[string]any `json:"cni-args,omitempty"`
	// DefaultRoute are the routers of the pod's default routes: it has no others
	// then.
	DefaultRoute []string `json:"default-route,omitempty"`
	// IPAMClaimReference names an IPAMClaim.
	IPAMClaimReference string `json:"ipam-claim-reference,omitempty"`
}

// ParseSelections reads the annotation in either of its forms, a JSON list or
// namespace/name@interface,... with namespace and interface left out where they
// are not needed. An empty text selects nothing. Members that the specification
// does not name are passed over: other implementations have their own.
func ParseSelections(annotation, namespace string) ([]Selection, error) {
	text := strings.TrimSpace(annotation)
	if text == "" {
		return nil, nil
	}
	var out []Selection
	if strings.ContainsAny(text, "[{\"") {
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			return nil, fmt.Errorf("the list is no JSON list of network selections: %w", err)
		}
	} else {
		for item := range strings.SplitSeq(text, ",") {
			out = append(out, parseSelection(strings.TrimSpace(item)))
		}
	}
	if len(out) > MaxRequests {
		return nil, fmt.Errorf("%d networks are more than the %d that a pod may have", len(out), MaxRequests)
	}
	taken, routed := map[string]int{}, -1
	for i := range out {
		s := &out[i]
		if s.Namespace == "" {
			s.Namespace = namespace
		}
		if err := checkSelection(s); err != nil {
			return nil, fmt.Errorf("item %d (%s/%s): %w", i+1, s.Namespace, s.Name, err)
		}
		if first, ok := taken[s.IfName]; ok && s.IfName != "" {
			return nil, fmt.Errorf("item %d (%s/%s): interface %q is already used by item %d", i+1, s.Namespace, s.Name, s.IfName, first+1)
		}
		taken[s.IfName] = i
		if len(s.DefaultRoute) > 0 {
			if routed >= 0 {
				return nil, fmt.Errorf("item %d (%s/%s): default-route is already asked for by item %d; a pod has one", i+1, s.Namespace, s.Name, routed+1)
			}
			routed = i
		}
	}
	return out, nil
}

func parseSelection(item string) Selection {
	var s Selection
	name, ifname, _ := strings.Cut(item, "@")
	if namespace, rest, qualified := strings.Cut(name, "/"); qualified {
		s.Namespace, name = strings.TrimSpace(namespace), rest
	}
	s.Name, s.IfName = strings.TrimSpace(name), strings.TrimSpace(ifname)
	return s
}

func checkSelection(s *Selection) error {
	if s.Name == "" {
		return errors.New("the name of the NetworkAttachmentDefinition is missing")
	}
	for _, label := range append(strings.Split(s.Name, "."), s.Namespace) {
		if !isLabel(label) {
			return errors.New("a name has lower case letters, digits and '-' only")
		}
	}
	if err := checkIfName(s.IfName); s.IfName != "" && err != nil {
		return err
	}
	if s.MAC != "" {
		if mac, err := net.ParseMAC(s.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return fmt.Errorf("mac: %q is no MAC address such as 0a:58:0a:0a:00:05", s.MAC)
		}
	}
	for _, ip := range s.IPs {
		if _, err := parseIP(ip); err != nil {
			return err
		}
	}
	for _, hop := range s.DefaultRoute {
		if _, err := netip.ParseAddr(hop); err != nil {
			return fmt.Errorf("default-route: %q is no IP address", hop)
		}
	}
	if s.InfinibandGUID != "" {
		if guid, err := net.ParseMAC(s.InfinibandGUID); err != nil || len(guid) != 8 {
			return fmt.Errorf("infiniband-guid: %q is no GUID such as c2:11:22:33:44:55:66:77", s.InfinibandGUID)
		}
	}
	return nil
}

// NameSelections gives each selection without an interface name net and its
// place in the list, as other implementations do, or the next number that is
// free: taken are the names of the pod's other interfaces.
func NameSelections(selections []Selection, taken []string) error {
	used := map[string]bool{PrimaryInterface: true}
	for _, name := range taken {
		used[name] = true
	}
	for i := range selections {
		s := &selections[i]
		if s.IfName == "" {
			continue
		}
		if used[s.IfName] {
			return fmt.Errorf("item %d (%s/%s): the pod has an interface %q already", i+1, s.Namespace, s.Name, s.IfName)
		}
		used[s.IfName] = true
	}
	for i := range selections {
		for number := i + 1; selections[i].IfName == ""; number++ {
			if name := fmt.Sprintf("net%d", number); !used[name] {
				selections[i].IfName, used[name] = name, true
			}
		}
	}
	return nil
}

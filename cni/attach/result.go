// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// result tells the runtime of our interfaces (CNI specification, ADD success).
func result(netns string, all []wanted, interfaces []link.Interface, version string) (json.RawMessage, error) {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for i := range interfaces {
		iface := &interfaces[i]
		if iface.HostEnd != "" {
			out.Interfaces = append(out.Interfaces, &current.Interface{Name: iface.HostEnd})
		}
		index := len(out.Interfaces)
		entry := &current.Interface{Name: iface.Name, Mac: iface.MAC, Mtu: iface.MTU, Sandbox: netns}
		if iface.NIC != nil {
			entry.PciID = iface.NIC.Hardware.PCIAddress
		}
		out.Interfaces = append(out.Interfaces, entry)
		gateway, gateway6 := all[i].plan.Gateway()
		for _, address := range iface.Addresses {
			ip := &current.IPConfig{Interface: current.Int(index), Address: ipNet(address)}
			for _, g := range []netip.Addr{gateway, gateway6} {
				if sameFamily(g, address.Addr()) {
					ip.Gateway = g.AsSlice()
				}
			}
			out.IPs = append(out.IPs, ip)
		}
		for _, r := range iface.Routes {
			route := &cnitypes.Route{Dst: ipNet(r.To)}
			if r.Via.IsValid() {
				route.GW = r.Via.AsSlice()
			}
			out.Routes = append(out.Routes, route)
		}
		if dns := all[i].network.Spec.DNS; dns != nil && all[i].primary() {
			out.DNS.Search = dns.Search
			for _, server := range dns.Nameservers {
				out.DNS.Nameservers = append(out.DNS.Nameservers, string(server))
			}
		}
	}
	asked, err := out.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("giving the result the form of version %s: %w", version, err)
	}
	raw, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("encoding the result: %w", err)
	}
	return raw, nil
}

func ipNet(prefix netip.Prefix) net.IPNet {
	addr := prefix.Addr()
	return net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), addr.BitLen())}
}

// attachments are our entries of network-status (NPWG specification v1.3, 4.1.3).
func attachments(all []wanted, interfaces []link.Interface) []podnetworks.Attachment {
	out := make([]podnetworks.Attachment, 0, len(interfaces))
	for i := range interfaces {
		iface := &interfaces[i]
		entry := podnetworks.Attachment{
			Name: all[i].network.Name, Interface: iface.Name, MAC: iface.MAC, MTU: iface.MTU, Default: all[i].primary(), NIC: all[i].nic,
		}
		if iface.NIC != nil {
			entry.DeviceInfo = deviceInfo(iface.NIC)
		}
		for _, address := range iface.Addresses {
			entry.IPs = append(entry.IPs, address.Addr().String())
		}
		for _, r := range iface.Routes {
			if r.To.Bits() == 0 {
				entry.Gateway = append(entry.Gateway, r.Via.String())
			}
		}
		if dns := all[i].network.Spec.DNS; dns != nil {
			entry.DNS = &podnetworks.AttachmentDNS{Search: dns.Search}
			for _, server := range dns.Nameservers {
				entry.DNS.Nameservers = append(entry.DNS.Nameservers, string(server))
			}
		}
		out = append(out, entry)
	}
	return out
}

// deviceInfo tells which device a whole NIC is (NPWG device information
// specification v1.1.0, 3); nil for one that is on no PCI bus.
func deviceInfo(nic *link.NIC) json.RawMessage {
	if nic.Hardware.PCIAddress == "" {
		return nil
	}
	raw, err := json.Marshal(map[string]any{
		"type": "pci", "version": "1.1.0", "pci": map[string]string{"pci-address": nic.Hardware.PCIAddress},
	})
	if err != nil {
		return nil // cannot be: strings only
	}
	return raw
}

// defaultAttachments are the entries of the cluster's default network, one for
// each interface that it made in the pod.
func defaultAttachments(network *wire.DefaultNetwork) ([]podnetworks.Attachment, error) {
	if network == nil {
		return nil, nil
	}
	from, err := readResult(network.Result)
	if err != nil {
		return nil, fmt.Errorf("reading the default network's result: %w", err)
	}
	var out []podnetworks.Attachment
	for index, iface := range from.Interfaces {
		if iface.Sandbox == "" {
			continue
		}
		entry := podnetworks.Attachment{
			Name: network.Name, Interface: iface.Name, MAC: iface.Mac, MTU: iface.Mtu,
			Default: iface.Name == podnetworks.PrimaryInterface,
		}
		for _, ip := range from.IPs {
			if ip.Interface == nil || *ip.Interface != index {
				continue
			}
			entry.IPs = append(entry.IPs, ip.Address.IP.String())
			if ip.Gateway != nil && entry.Default {
				entry.Gateway = append(entry.Gateway, ip.Gateway.String())
			}
		}
		if !from.DNS.IsEmpty() && entry.Default {
			entry.DNS = &podnetworks.AttachmentDNS{Nameservers: from.DNS.Nameservers, Domain: from.DNS.Domain, Search: from.DNS.Search}
		}
		out = append(out, entry)
	}
	return out, nil
}

// readResult reads a CNI result in the version 1.1.0.
func readResult(raw json.RawMessage) (*current.Result, error) {
	parsed, err := current.NewResult(raw)
	if err != nil {
		return nil, err
	}
	return current.GetResult(parsed)
}

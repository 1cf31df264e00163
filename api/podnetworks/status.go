// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"encoding/json"
	"fmt"
)

// Attachment is one entry of k8s.v1.cni.cncf.io/network-status, in the form of
// the NPWG multi-network specification v1.3, section 5.1.
type Attachment struct {
	// Name is the Network's name, or the CNI network's for the cluster default.
	Name string `json:"name"`
	// Interface is the interface's name in the pod.
	Interface string `json:"interface,omitempty"`
	// IPs are the addresses without prefix length.
	IPs []string `json:"ips,omitempty"`
	// MAC is the hardware address.
	MAC string `json:"mac,omitempty"`
	// MTU is the interface's, in bytes.
	MTU int `json:"mtu,omitempty"`
	// Default is true for the interface whose address is the pod IP.
	Default bool `json:"default,omitempty"`
	// Gateway are the routers that the interface's default routes go to.
	Gateway []string `json:"gateway,omitempty"`
	// DNS is what the network offers.
	DNS *AttachmentDNS `json:"dns,omitempty"`
	// NIC is the node's NIC that the interface shares with others: of several
	// behind a physical network, only its own carries it. Others than netplane do
	// not write it, so it has netplane's name.
	NIC string `json:"netplane.io/nic,omitempty"`
	// DeviceInfo is passed through unread.
	DeviceInfo json.RawMessage `json:"device-info,omitempty"`
}

// AttachmentDNS is the dns member of an Attachment.
type AttachmentDNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
}

// ParseStatus reads a network-status annotation; an empty text is no attachments.
// Unknown members are passed over: others write the same annotation.
func ParseStatus(annotation string) ([]Attachment, error) {
	if annotation == "" {
		return nil, nil
	}
	var out []Attachment
	if err := json.Unmarshal([]byte(annotation), &out); err != nil {
		return nil, fmt.Errorf("reading network-status: %w", err)
	}
	return out, nil
}

// FormatStatus writes a network-status annotation.
func FormatStatus(attachments []Attachment) (string, error) {
	raw, err := json.Marshal(attachments)
	if err != nil {
		return "", fmt.Errorf("writing network-status: %w", err)
	}
	return string(raw), nil
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"
)

// PluginType is the CNI binary's name, and the type of its configuration.
const PluginType = "netplane"

// Delegate is an interface that another CNI plugin makes. The binary executes
// it between Prepare and Commit.
type Delegate struct {
	// Network is what messages call it: a Network's name.
	Network string `json:"network"`
	// IfName is the interface's name in the pod.
	IfName string `json:"ifname"`
	// Config is a CNI configuration list with its plugins in it.
	Config json.RawMessage `json:"config"`
	// RuntimeConfig is what plugins that declare the capability are given.
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig,omitempty"`
	// Primary: it takes the place of the cluster's default network, and so is
	// given all that the runtime gave for that one (host ports, bandwidth).
	Primary bool `json:"primary,omitempty"`
}

// DelegateResult is what a Delegate's plugins answered.
type DelegateResult struct {
	IfName string `json:"ifname"`
	// Result is the CNI result in the version 1.1.0.
	Result json.RawMessage `json:"result"`
	// DeviceInfo is what the plugin wrote of the device behind the interface, a
	// JSON object (NPWG device information specification); nil if nothing.
	DeviceInfo json.RawMessage `json:"deviceInfo,omitempty"`
}

// IPAM is the member ipam of a delegate's configuration by which its plugin
// calls the binary for addresses, and all that the binary needs to answer: what
// the agent reserved.
type IPAM struct {
	// Type is PluginType.
	Type      string         `json:"type"`
	Addresses []IPAMAddress  `json:"addresses"`
	Routes    []*types.Route `json:"routes,omitempty"`
	DNS       types.DNS      `json:"dns,omitzero"`
}

// IPAMAddress is one address of an interface.
type IPAMAddress struct {
	// Address with the prefix length of its subnet.
	Address string `json:"address"`
	// Gateway is the next hop of routes that name none.
	Gateway string `json:"gateway,omitempty"`
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/cni/wire"
)

// The binary is the IPAM plugin of delegates on Networks with a subnet, too. It
// answers what the agent has reserved and written into their configuration, so
// that the node needs no other IPAM plugin, and gives nothing out by itself.

// ipamConf is the part that counts of the configuration that a delegate hands
// to its IPAM plugin: its own.
type ipamConf struct {
	CNIVersion string    `json:"cniVersion"`
	Type       string    `json:"type"`
	IPAM       wire.IPAM `json:"ipam"`
}

// either runs ipam if the caller is a plugin that asks for addresses, and main
// if it is the runtime.
func either(ipam func(*ipamConf) error, main func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if bytes.Contains(args.StdinData, []byte(`"wrapped"`)) { // our own configuration; to read it would take longer
			return main(args)
		}
		var conf ipamConf
		if json.Unmarshal(args.StdinData, &conf) == nil && conf.Type != wire.PluginType && conf.IPAM.Type == wire.PluginType {
			return ipam(&conf)
		}
		return main(args)
	}
}

// ipamAdd answers the addresses, routes and DNS of the configuration.
func ipamAdd(conf *ipamConf) error {
	result, err := addresses(&conf.IPAM)
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func addresses(ipam *wire.IPAM) (*current.Result, error) {
	if len(ipam.Addresses) == 0 {
		return nil, fmt.Errorf("ipam of type %s has no addresses: netplane-agent writes them, no admin", wire.PluginType)
	}
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: ipam.Routes, DNS: ipam.DNS}
	for _, a := range ipam.Addresses {
		ip, subnet, err := net.ParseCIDR(a.Address)
		if err != nil {
			return nil, fmt.Errorf("reading ipam.addresses: %w", err)
		}
		out.IPs = append(out.IPs, &current.IPConfig{Address: net.IPNet{IP: ip, Mask: subnet.Mask}, Gateway: net.ParseIP(a.Gateway)})
	}
	return out, nil
}

// ipamNothing: the agent gives addresses back when the delegate is done.
func ipamNothing(*ipamConf) error { return nil }

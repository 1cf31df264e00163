// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/cni/wire"
)

func add(args *skel.CmdArgs) error {
	c, err := newCommand(args)
	if err != nil {
		return err
	}
	networks, asked, err := c.networks()
	if err != nil {
		return err
	}
	var result types.Result
	if asked {
		result, err = c.attach(networks)
	} else {
		result, err = c.cni.AddNetworkList(context.Background(), c.wrapped, c.runtime)
		err = c.wrappedError(err)
	}
	if err != nil {
		return err
	}
	return types.PrintResult(result, c.config.CNIVersion)
}

// attach runs the two rounds of an ADD. Whatever fails after the default
// network was added takes it away again; ending the connection makes the agent
// undo its part.
func (c *command) attach(networks string) (types.Result, error) {
	ctx := context.Background()
	client, err := c.dial(ctx)
	if err != nil {
		return nil, cniError(err)
	}
	defer func() { _ = client.Close() }()
	prepare, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	prepared, err := client.Call(prepare, wire.Request{Op: wire.OpPrepare, Sandbox: c.sandbox, Networks: networks})
	if err != nil {
		return nil, cniError(err)
	}
	var underlay *wire.DefaultNetwork
	if prepared.DefaultNetwork {
		if underlay, err = c.addDefault(ctx); err != nil {
			return nil, err
		}
	}
	commit, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	committed, err := client.Call(commit, wire.Request{Op: wire.OpCommit, Sandbox: c.sandbox, Default: underlay})
	if err == nil {
		result, mergeErr := merge(underlay, committed.Result)
		if mergeErr == nil {
			return result, nil
		}
		_, delErr := c.call(wire.Request{Op: wire.OpDel, Sandbox: c.sandbox}, otherTimeout)
		err = errors.Join(mergeErr, delErr)
	} else {
		err = cniError(err)
	}
	if underlay != nil {
		err = c.withUndo(ctx, err)
	}
	return nil, err
}

// addDefault runs the cluster's default network.
func (c *command) addDefault(ctx context.Context) (*wire.DefaultNetwork, error) {
	added, err := c.cni.AddNetworkList(ctx, c.wrapped, c.runtime)
	if err != nil {
		return nil, c.withUndo(ctx, c.wrappedError(err))
	}
	result, err := current.GetResult(added)
	if err != nil {
		return nil, c.withUndo(ctx, fmt.Errorf("reading the result of network %q: %w", c.wrapped.Name, err))
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return nil, c.withUndo(ctx, fmt.Errorf("encoding the result of network %q: %w", c.wrapped.Name, err))
	}
	return &wire.DefaultNetwork{Name: c.wrapped.Name, Result: raw}, nil
}

// withUndo removes the default network and returns why.
func (c *command) withUndo(ctx context.Context, cause error) error {
	err := c.cni.DelNetworkList(ctx, c.wrapped, c.runtime)
	if err == nil {
		return cause
	}
	code := uint(types.ErrInternal)
	var known *types.Error
	if errors.As(cause, &known) {
		code = known.Code
	}
	return types.NewError(code, cause.Error(), "removing it again failed too: "+err.Error())
}

// merge puts our interfaces behind those of the default network. Without one,
// a Network is on eth0 and comes first by itself.
func merge(underlay *wire.DefaultNetwork, ours json.RawMessage) (types.Result, error) {
	overlay := &current.Result{}
	if err := json.Unmarshal(ours, overlay); err != nil {
		return nil, fmt.Errorf("reading the agent's result: %w", err)
	}
	if underlay == nil {
		return overlay, nil
	}
	merged := &current.Result{}
	if err := json.Unmarshal(underlay.Result, merged); err != nil {
		return nil, fmt.Errorf("reading the default network's result: %w", err)
	}
	offset := len(merged.Interfaces)
	merged.Interfaces = append(merged.Interfaces, overlay.Interfaces...)
	for _, ip := range overlay.IPs {
		if ip.Interface != nil {
			ip.Interface = current.Int(*ip.Interface + offset)
		}
		merged.IPs = append(merged.IPs, ip)
	}
	merged.Routes = append(merged.Routes, overlay.Routes...)
	return merged, nil
}

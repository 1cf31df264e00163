// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

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
	if asked {
		if err := c.exists(); err != nil {
			return err
		}
		return c.attach(networks)
	}
	result, err := c.cni.AddNetworkList(context.Background(), c.wrapped, c.runtime)
	if err != nil {
		return c.wrappedError(err)
	}
	return types.PrintResult(result, c.config.CNIVersion)
}

// exists looks for the pod's namespace before anything is reserved for it. The
// code tells the runtime that there is nothing to clean up.
func (c *command) exists() error {
	if _, err := os.Stat(c.args.Netns); err != nil {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("container %s has no network namespace: %v", c.args.ContainerID, err), "")
	}
	return nil
}

// attach does an ADD with the agent and prints the result: in one round if all is
// the agent's, else in two. Whatever fails between them takes away again what was
// added; ending the connection makes the agent undo its part.
func (c *command) attach(networks string) error {
	ctx := context.Background()
	client, err := c.dial(ctx)
	if err != nil {
		return cniError(err)
	}
	defer func() { _ = client.Close() }()
	prepare, cancel := context.WithTimeout(ctx, prepareTimeout+commitTimeout)
	defer cancel()
	prepared, err := client.Call(prepare, wire.Request{
		Op: wire.OpPrepare, Sandbox: c.sandbox, Networks: networks, NPWG: c.npwg, AtOnce: true, CNIVersion: c.config.CNIVersion,
	})
	if err != nil {
		return cniError(err)
	}
	if prepared.Result != nil {
		_, err := os.Stdout.Write(append(prepared.Result, '\n'))
		return err
	}
	added := &underlay{command: c}
	defer c.letGo()
	if err := added.add(ctx, prepared); err != nil {
		return c.abort(ctx, client, err)
	}
	commit, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	committed, err := client.Call(commit, wire.Request{Op: wire.OpCommit, Sandbox: c.sandbox, Default: added.network, Delegates: added.delegates})
	if err != nil {
		return c.abort(ctx, client, added.undo(ctx, cniError(err)))
	}
	result, err := merge(added, committed.Result)
	if err != nil {
		err = added.undo(ctx, err)
		if !c.undone() { // else an address would be free that an interface has
			return err
		}
		_, delErr := c.call(wire.Request{Op: wire.OpDel, Sandbox: c.sandbox}, otherTimeout)
		return alsoFailed(err, delErr)
	}
	return types.PrintResult(result, c.config.CNIVersion)
}

// abort tells the agent that nothing is left of what the binary has made, so that
// it gives all addresses back at once, and returns why. Without that word, which
// an agent that is gone does not hear either, the runtime's DEL does it.
func (c *command) abort(ctx context.Context, client *wire.Client, cause error) error {
	if !c.undone() {
		return cause
	}
	ctx, cancel := context.WithTimeout(ctx, otherTimeout)
	defer cancel()
	_, _ = client.Call(ctx, wire.Request{Op: wire.OpAbort, Sandbox: c.sandbox})
	return cause
}

// undone: no delegate of the sandbox is left to be removed.
func (c *command) undone() bool {
	r, err := c.records().get(c.args.ContainerID)
	return r == nil && err == nil
}

// underlay is what the binary itself added of a pod: the cluster's default
// network and the delegates.
type underlay struct {
	*command
	network   *wire.DefaultNetwork
	delegates []wire.DelegateResult
}

// add runs what the agent answered to Prepare, or nothing.
func (u *underlay) add(ctx context.Context, prepared *wire.Response) (err error) {
	if prepared.DefaultNetwork {
		if u.network, err = u.addDefault(ctx); err != nil {
			return err
		}
	}
	if u.delegates, err = u.addDelegates(ctx, prepared.Delegates); err != nil {
		return u.undo(ctx, err)
	}
	return nil
}

// undo removes what was added, the last first, and returns why.
func (u *underlay) undo(ctx context.Context, cause error) error {
	if len(u.delegates) > 0 {
		cause = alsoFailed(cause, u.delRecorded(ctx))
	}
	if u.network != nil {
		cause = u.withUndo(ctx, cause)
	}
	return cause
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
	return alsoFailed(cause, c.cni.DelNetworkList(ctx, c.wrapped, c.runtime))
}

// merge puts the delegates' interfaces behind those of the default network, and
// ours behind both. Without a default network a Network is on eth0: a delegated
// one is the first delegate.
func merge(added *underlay, ours json.RawMessage) (*current.Result, error) {
	out := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	if added.network != nil {
		if err := appendResult(out, added.network.Result); err != nil {
			return nil, fmt.Errorf("reading the default network's result: %w", err)
		}
	}
	for i := range added.delegates {
		if err := appendResult(out, added.delegates[i].Result); err != nil {
			return nil, fmt.Errorf("reading the result of %s: %w", added.delegates[i].IfName, err)
		}
	}
	if err := appendResult(out, ours); err != nil {
		return nil, fmt.Errorf("reading the agent's result: %w", err)
	}
	return out, nil
}

// appendResult adds a result whose interfaces are numbered from 0. The first
// one with DNS is that of eth0.
func appendResult(to *current.Result, raw json.RawMessage) error {
	more := &current.Result{}
	if err := json.Unmarshal(raw, more); err != nil {
		return err
	}
	offset := len(to.Interfaces)
	to.Interfaces = append(to.Interfaces, more.Interfaces...)
	for _, ip := range more.IPs {
		if ip.Interface != nil {
			ip.Interface = current.Int(*ip.Interface + offset)
		}
		to.IPs = append(to.IPs, ip)
	}
	to.Routes = append(to.Routes, more.Routes...)
	if to.DNS.IsEmpty() {
		to.DNS = more.DNS
	}
	return nil
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/netplane/netplane/cni/wire"
)

// del removes all parts: the delegates', ours, and the wrapped network's. The
// last runs unless the agent knows that the network was never added: it would be
// harmless, and a pod may be older than the installation. A DEL that no agent
// takes is spooled, unless there is nothing to undo. While a delegate's interface is left, the
// agent is not asked: it would give the interface's address to another pod.
func del(args *skel.CmdArgs) error {
	c, err := newCommand(args)
	if err != nil {
		return err
	}
	asked, _, err := c.demand()
	if err != nil {
		asked = demandUnknown // DEL goes on whatever the runtime passes
	}
	alone, failed := false, c.delRecorded(context.Background())
	if failed == nil && asked != demandNone {
		alone, failed = c.delOurs()
	}
	if alone && failed == nil {
		return nil
	}
	wrapped := cmp.Or(c.made(), c.wrapped)
	err = c.cni.DelNetworkList(context.Background(), wrapped, c.runtime)
	if err != nil {
		return alsoFailed(networkError(wrapped.Name, err), failed)
	}
	return failed
}

// delOurs has the agent remove its part. It returns true if no other is left.
func (c *command) delOurs() (alone bool, err error) {
	response, err := c.call(wire.Request{Op: wire.OpDel, Sandbox: c.sandbox}, otherTimeout)
	if err == nil {
		return response.Alone, nil
	}
	if own(err) {
		return false, cniError(err)
	}
	if unheard(err) && c.config.Journal != "" && !wire.Journaled(c.config.Journal, c.sandbox.ContainerID) {
		return false, nil
	}
	if spoolErr := wire.Spool(c.config.SpoolDir).Put(c.sandbox); spoolErr != nil {
		return false, types.NewError(types.ErrIOFailure, fmt.Sprintf("the netplane agent %s (%v), and the DEL could not be left for it: %v", silence(err), err, spoolErr), "")
	}
	return false, nil
}

// unheard says that no agent listens: none works on the sandbox just now either.
func unheard(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// check checks all parts: ours against what the ADD answered and against the
// kernel, the delegates, and the default network only where it was added: libcni
// has its result then.
func check(args *skel.CmdArgs) error {
	c, err := newCommand(args)
	if err != nil {
		return err
	}
	_, asked, err := c.networks()
	if err != nil {
		return err
	}
	if asked {
		previous, err := c.previous()
		if err != nil {
			return err
		}
		if _, err := c.call(wire.Request{Op: wire.OpCheck, Sandbox: c.sandbox, Previous: previous}, otherTimeout); err != nil {
			return cniError(err)
		}
		if err := c.checkRecorded(context.Background()); err != nil {
			return err
		}
	}
	wrapped := c.made()
	if wrapped == nil {
		if asked {
			return nil
		}
		wrapped = c.wrapped
	}
	if able, err := checkable(wrapped); err != nil || !able {
		return err
	}
	return networkError(wrapped.Name, c.cni.CheckNetworkList(context.Background(), wrapped, c.runtime))
}

// previous is the ADD's answer, which the runtime gives to a CHECK, in the
// version that the agent reads.
func (c *command) previous() (json.RawMessage, error) {
	if c.config.RawPrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "CHECK without prevResult", "")
	}
	if err := version.ParsePrevResult(&c.config.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "reading prevResult: "+err.Error(), "")
	}
	result, err := current.NewResultFromResult(c.config.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "reading prevResult: "+err.Error(), "")
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return nil, fmt.Errorf("encoding prevResult: %w", err)
	}
	return raw, nil
}

// status is the wrapped network's alone. A failing STATUS makes the whole node
// NotReady, which pods without a Network must not suffer; what the agent can
// do stands in NodeNetwork's AgentReady.
func status(args *skel.CmdArgs) error {
	c, err := newCommand(args)
	if err != nil {
		return err
	}
	return c.wrappedError(c.cni.GetStatusNetworkList(context.Background(), c.wrapped))
}

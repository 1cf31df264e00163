// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/netplane/netplane/cni/wire"
)

// delegateTimeout bounds one command of one delegate. A plugin that hangs is
// killed, so that the others can still be undone within kubelet's patience.
const delegateTimeout = 30 * time.Second

// addDelegates runs the delegates of an ADD one after another (CNI
// specification: no parallel operations on one container). After an error
// nothing of them is left, or else the record of what could not be undone, for
// the runtime's DEL.
func (c *command) addDelegates(ctx context.Context, all []wire.Delegate) ([]wire.DelegateResult, error) {
	if len(all) == 0 {
		return nil, nil
	}
	for i := range all {
		if all[i].Primary {
			all[i].RuntimeConfig = with(all[i].RuntimeConfig, c.config.RuntimeConfig)
		}
	}
	if err := offerDeviceInfo(c.args.ContainerID, all); err != nil {
		return nil, types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	record := &record{ContainerID: c.args.ContainerID, Args: c.runtime.Args, Delegates: all}
	letGo, err := c.records().put(record)
	if err != nil {
		return nil, types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	c.letGo = letGo
	out := make([]wire.DelegateResult, 0, len(all))
	for i := range all {
		result, err := c.addDelegate(ctx, record, &all[i])
		if err != nil {
			record.Delegates = all[:i+1]
			return nil, alsoFailed(err, c.delDelegates(ctx, record))
		}
		out = append(out, wire.DelegateResult{IfName: all[i].IfName, Result: result, DeviceInfo: deviceInfo(&all[i])})
	}
	return out, nil
}

// with returns what has is and more, more first; neither is changed.
func with(has, more map[string]json.RawMessage) map[string]json.RawMessage {
	out := make(map[string]json.RawMessage, len(has)+len(more))
	maps.Copy(out, has)
	maps.Copy(out, more)
	return out
}

func (c *command) addDelegate(ctx context.Context, r *record, d *wire.Delegate) (json.RawMessage, error) {
	list, err := listOf(d)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	added, err := c.cni.AddNetworkList(ctx, list, r.runtime(d, c.args.Netns))
	if err != nil {
		return nil, networkError(d.Network, c.timedOut(ctx, err))
	}
	result, err := current.GetResult(added)
	if err != nil {
		return nil, networkError(d.Network, err)
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return nil, networkError(d.Network, err)
	}
	return raw, nil
}

// delDelegates calls every delegate's DEL, the last one first, also if some
// fail. The record goes when nothing is left.
func (c *command) delDelegates(ctx context.Context, r *record) error {
	var failed []error
	for i := range slices.Backward(r.Delegates) {
		failed = append(failed, c.delDelegate(ctx, r, &r.Delegates[i]))
	}
	if err := together(failed...); err != nil {
		return err
	}
	return c.records().remove(r.ContainerID)
}

func (c *command) delDelegate(ctx context.Context, r *record, d *wire.Delegate) error {
	list, err := listOf(d)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	if err := c.cni.DelNetworkList(ctx, list, r.runtime(d, c.args.Netns)); err != nil {
		return networkError(d.Network, c.timedOut(ctx, err))
	}
	return networkError(d.Network, forgetDeviceInfo(d))
}

// delRecorded removes what delegates made for the sandbox, from the record on
// disk alone: neither agent nor API server nor the Network need to be there.
func (c *command) delRecorded(ctx context.Context) error {
	r, err := c.records().get(c.args.ContainerID)
	if err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	if r == nil {
		return nil
	}
	return c.delDelegates(ctx, r)
}

// checkRecorded has each delegate check what it made.
func (c *command) checkRecorded(ctx context.Context) error {
	r, err := c.records().get(c.args.ContainerID)
	if err != nil {
		return types.NewError(types.ErrIOFailure, err.Error(), "")
	}
	if r == nil {
		return nil
	}
	var wrong []error
	for i := range r.Delegates {
		wrong = append(wrong, c.checkDelegate(ctx, r, &r.Delegates[i]))
	}
	return together(wrong...)
}

func (c *command) checkDelegate(ctx context.Context, r *record, d *wire.Delegate) error {
	list, err := listOf(d)
	if err != nil {
		return err
	}
	if able, err := checkable(list); err != nil || !able {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	return networkError(d.Network, c.timedOut(ctx, c.cni.CheckNetworkList(ctx, list, r.runtime(d, c.args.Netns))))
}

// listOf reads a delegate's configuration.
func listOf(d *wire.Delegate) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(d.Config)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("network %q: reading its CNI configuration: %v", d.Network, err), "")
	}
	return list, nil
}

// checkable: version 0.4.0 of the specification brought CHECK; an older
// configuration has nothing to ask.
func checkable(list *libcni.NetworkConfigList) (bool, error) {
	able, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0")
	if err != nil {
		return false, types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("reading the cniVersion of network %q", list.Name), err.Error())
	}
	return able, nil
}

// timedOut says so where a plugin was killed, which libcni does not.
func (c *command) timedOut(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("no answer within %s", c.patience), err.Error())
	}
	return err
}

// alsoFailed adds to the cause of a failure that undoing did not succeed either.
func alsoFailed(cause, undo error) error {
	if undo == nil {
		return cause
	}
	code := uint(types.ErrInternal)
	var known *types.Error
	if errors.As(cause, &known) {
		code = known.Code
	}
	return types.NewError(code, cause.Error(), "removing it again failed too: "+undo.Error())
}

// together is one error of several, with the code of the first that has one: what
// is no CNI error reaches the runtime as an internal one. It is nil if all are.
func together(all ...error) error {
	all = slices.DeleteFunc(all, func(err error) bool { return err == nil })
	if len(all) <= 1 {
		return errors.Join(all...)
	}
	code, found := uint(types.ErrInternal), false
	texts := make([]string, 0, len(all))
	for _, err := range all {
		texts = append(texts, err.Error())
		var known *types.Error
		if !found && errors.As(err, &known) {
			code, found = known.Code, true
		}
	}
	return types.NewError(code, strings.Join(texts, "; "), "")
}

// networkError tells which network failed, and keeps the plugin's error code.
func networkError(name string, err error) error {
	if err == nil {
		return nil
	}
	var plugin *types.Error
	if errors.As(err, &plugin) {
		return types.NewError(plugin.Code, fmt.Sprintf("network %q: %s", name, plugin.Msg), plugin.Details)
	}
	return types.NewError(types.ErrInternal, fmt.Sprintf("network %q: %v", name, err), "")
}

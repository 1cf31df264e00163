// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/netplane/netplane/cni/wire"
)

// made is the configuration by which the sandbox got its default network, which
// libcni's cache tells; nil if it got none. The node's may be another by now: a
// DEL by that one would leave behind what the former plugins keep (addresses, rules
// of the host), and ask others to remove what they never made. A former one whose
// plugins are gone from the node is of no use, and counts as none.
func (c *command) made() *libcni.NetworkConfigList {
	raw, _, err := c.cni.GetNetworkListCachedConfig(c.wrapped, c.runtime)
	switch {
	case err != nil || bytes.Equal(raw, c.wrapped.Bytes):
		return c.wrapped
	case raw != nil:
		if list := c.usable(raw); list != nil {
			return list
		}
		return c.wrapped
	}
	attachments, err := c.cni.GetCachedAttachments(c.args.ContainerID)
	if err != nil {
		return nil
	}
	for _, a := range attachments {
		if a.IfName != c.args.IfName || a.Network == c.config.Name || c.delegated(a) {
			continue
		}
		if list := c.usable(a.Config); list != nil && list.Name == a.Network {
			return list
		}
	}
	return nil
}

// delegated: a delegate made it, whose record has all about it.
func (c *command) delegated(a *libcni.NetworkAttachment) bool {
	r, err := c.records().get(c.args.ContainerID)
	if err != nil || r == nil {
		return err != nil
	}
	return slices.ContainsFunc(r.Delegates, func(d wire.Delegate) bool { return d.IfName == a.IfName })
}

// usable reads a configuration; nil if it or a plugin of it is gone.
func (c *command) usable(raw []byte) *libcni.NetworkConfigList {
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil || len(list.Plugins) == 0 {
		return nil
	}
	for _, plugin := range list.Plugins {
		if _, err := invoke.FindInPath(plugin.Network.Type, filepath.SplitList(c.args.Path)); err != nil {
			return nil
		}
	}
	return list
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/netplane/netplane/cni/wire"
)

// gcGrace spares what is younger from GC: the runtime may have made its list
// before, and need not have kept ADD out since.
const gcGrace = time.Minute

// primaryInterface is what runtimes call the interface of an attachment of ours.
const primaryInterface = "eth0"

// gc removes what is of no attachment in the runtime's list: first what delegates
// made, since the agent gives their addresses to others, then the agent's part,
// then the wrapped network's. An agent that is down collects its garbage by itself
// when it is back.
func gc(args *skel.CmdArgs) error {
	c, err := newCommand(args)
	if err != nil {
		return err
	}
	// Without the list everything would count as garbage.
	var given map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &given); err != nil || given["cni.dev/valid-attachments"] == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "GC without cni.dev/valid-attachments", "")
	}
	ctx := context.Background()
	valid, delegates := c.gcDelegates(ctx, c.config.ValidAttachments, time.Now())
	ids := make([]string, 0, len(valid))
	for _, attachment := range valid {
		ids = append(ids, attachment.ContainerID)
	}
	slices.Sort(ids)
	_, ours := c.call(wire.Request{Op: wire.OpGC, Valid: slices.Compact(ids)}, otherTimeout)
	if ours != nil && own(ours) {
		ours = cniError(ours)
	} else {
		ours = nil
	}
	valid = append(valid, c.young(time.Now())...)
	wrapped := c.cni.GCNetworkList(ctx, c.wrapped, &libcni.GCArgs{ValidAttachments: valid})
	return together(delegates, ours, c.wrappedError(wrapped), c.gcFormer(ctx, valid))
}

// gcDelegates removes what delegates made for sandboxes that are not valid any
// more, and passes the list on to the others' plugins. It returns the list with
// the delegates' interfaces in it: the wrapped network may be the same as a
// delegate's, and would take them for garbage. Sandboxes of which something is
// left are in it too, as their addresses are not free.
func (c *command) gcDelegates(ctx context.Context, valid []types.GCAttachment, now time.Time) ([]types.GCAttachment, error) {
	records, unreadable, err := c.records().list()
	failed := []error{err}
	all, networks := slices.Clone(valid), map[string]*libcni.NetworkConfigList{}
	for _, id := range unreadable {
		all = append(all, types.GCAttachment{ContainerID: id, IfName: primaryInterface})
	}
	for _, r := range records {
		lives := slices.ContainsFunc(valid, func(a types.GCAttachment) bool { return a.ContainerID == r.ContainerID })
		if !lives && !c.records().underWay(r.ContainerID, now) {
			err := c.delDelegates(ctx, r)
			if err == nil {
				continue
			}
			failed = append(failed, err)
		}
		for i := range r.Delegates {
			d := &r.Delegates[i]
			all = append(all, types.GCAttachment{ContainerID: r.ContainerID, IfName: d.IfName})
			if list, err := listOf(d); err == nil && list.Name != c.wrapped.Name {
				networks[list.Name] = list
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		failed = append(failed, networkError(name, c.gcNetwork(ctx, networks[name], all)))
	}
	return all, together(failed...)
}

func (c *command) gcNetwork(ctx context.Context, list *libcni.NetworkConfigList, valid []types.GCAttachment) error {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	return c.timedOut(ctx, c.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}))
}

// cached lists all that libcni's cache has; nil if it cannot be read.
func (c *command) cached() []*libcni.NetworkAttachment {
	all, err := c.cni.GetCachedAttachments("")
	if err != nil {
		return nil
	}
	return all
}

// young are the attachments of the wrapped network that were made moments ago.
func (c *command) young(now time.Time) []types.GCAttachment {
	var out []types.GCAttachment
	for _, a := range c.cached() {
		// libcni, getCacheFilePath
		file := filepath.Join(c.cacheDir(), "results", fmt.Sprintf("%s-%s-%s", a.Network, a.ContainerID, a.IfName))
		if info, err := os.Stat(file); err == nil && a.Network == c.wrapped.Name && now.Sub(info.ModTime()) < gcGrace {
			out = append(out, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	return out
}

// gcFormer calls the DEL of what pods have of networks that were wrapped before:
// nobody else will, once the pod's own is lost. The cache is everybody's, other
// users' of libcni too: only what a pod got counts, and only once its namespace is
// gone.
func (c *command) gcFormer(ctx context.Context, valid []types.GCAttachment) error {
	var failed []error
	for _, a := range c.cached() {
		known := slices.ContainsFunc(valid, func(v types.GCAttachment) bool { return v.ContainerID == a.ContainerID })
		if known || a.Network == c.config.Name || a.Network == c.wrapped.Name || a.NetNS == "" || exists(a.NetNS) || !ofPod(a) {
			continue
		}
		if r, err := c.records().get(a.ContainerID); r != nil || err != nil {
			continue // a delegate's: DEL sees to it, or the next GC
		}
		list := c.usable(a.Config)
		if list == nil || list.Name != a.Network || list.DisableGC {
			continue
		}
		runtime := &libcni.RuntimeConf{ContainerID: a.ContainerID, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs}
		failed = append(failed, networkError(a.Network, c.cni.DelNetworkList(ctx, list, runtime)))
	}
	return together(failed...)
}

// exists errs on the side of yes.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || !os.IsNotExist(err)
}

// ofPod: a kubelet's runtime made it.
func ofPod(a *libcni.NetworkAttachment) bool {
	return slices.ContainsFunc(a.CniArgs, func(arg [2]string) bool { return arg[0] == "K8S_POD_NAME" && arg[1] != "" })
}

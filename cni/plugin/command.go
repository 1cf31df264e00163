// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/netplane/netplane/cni/wire"
)

// capabilityAnnotations is what containerd and CRI-O call the capability by
// which they pass a pod's annotations.
const capabilityAnnotations = "io.kubernetes.cri.pod-annotations"

// Bounds of the waits for the agent; each is longer than the agent's own, so
// that its message arrives instead of "timed out". Kubelet gives a sandbox
// two minutes.
const (
	dialTimeout    = 2 * time.Second
	askTimeout     = 5 * time.Second
	prepareTimeout = 20 * time.Second
	commitTimeout  = 35 * time.Second
	otherTimeout   = 35 * time.Second
)

// config is our entry of the configuration list; cni/install writes it.
type config struct {
	types.PluginConf
	Socket   string `json:"socket"`
	SpoolDir string `json:"spoolDir"`
	// Journal is the agent's journal of addresses; empty in the configuration
	// of an older release.
	Journal string          `json:"journal,omitempty"`
	Wrapped json.RawMessage `json:"wrapped"`
	// UnderMultus: the runtime calls Multus, which calls us as the cluster's network.
	UnderMultus bool `json:"underMultus,omitempty"`
	// CacheDir is libcni's cache of the wrapped list; empty means its default,
	// the one that the runtime uses too: so pods from before the installation
	// are torn down with what they were set up with.
	CacheDir      string                     `json:"cacheDir,omitempty"`
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig,omitempty"`
}

// command is one invocation.
type command struct {
	args    *skel.CmdArgs
	config  config
	wrapped *libcni.NetworkConfigList
	cni     *libcni.CNIConfig
	runtime *libcni.RuntimeConf
	sandbox wire.Sandbox
	// npwg is what the pod asks for by NetworkAttachmentDefinitions, once
	// networks has found out; nil if nothing, or if Multus sees to it.
	npwg *wire.NPWG
	// patience bounds one command of one delegate.
	patience time.Duration
	// letGo says that the ADD is done with its delegates.
	letGo func()
}

func newCommand(args *skel.CmdArgs) (*command, error) {
	c := &command{args: args, patience: delegateTimeout, letGo: func() {}}
	if err := json.Unmarshal(args.StdinData, &c.config); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "reading the netplane configuration: "+err.Error(), "")
	}
	if c.config.Socket == "" || c.config.SpoolDir == "" || len(c.config.Wrapped) == 0 {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "the netplane configuration lacks socket, spoolDir or wrapped: it is written by netplane-agent, not by hand", "")
	}
	wrapped, err := libcni.NetworkConfFromBytes(c.config.Wrapped)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "reading the wrapped configuration: "+err.Error(), "")
	}
	c.wrapped = wrapped
	c.cni = libcni.NewCNIConfigWithCacheDir(filepath.SplitList(args.Path), c.config.CacheDir, newExecutor())
	c.runtime = &libcni.RuntimeConf{
		ContainerID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName,
		Args: splitArgs(args.Args), CapabilityArgs: map[string]any{},
	}
	for capability, value := range c.config.RuntimeConfig {
		c.runtime.CapabilityArgs[capability] = value
	}
	c.sandbox = wire.Sandbox{ContainerID: args.ContainerID, NetNS: args.Netns}
	for _, pair := range c.runtime.Args {
		switch pair[0] {
		case "K8S_POD_NAMESPACE":
			c.sandbox.PodNamespace = pair[1]
		case "K8S_POD_NAME":
			c.sandbox.PodName = pair[1]
		case "K8S_POD_UID":
			c.sandbox.PodUID = pair[1]
		}
	}
	return c, nil
}

// splitArgs reads CNI_ARGS: K1=V1;K2=V2.
func splitArgs(text string) [][2]string {
	var out [][2]string
	for pair := range strings.SplitSeq(text, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			out = append(out, [2]string{key, value})
		}
	}
	return out
}

// demand is what is known of a pod's annotation.
type demand int

const (
	demandUnknown demand = iota // the runtime passes no annotations
	demandNone
	demandNetworks
)

// demand reads the annotation among those that the runtime passed.
func (c *command) demand() (demand, string, error) {
	raw, passed := c.config.RuntimeConfig[capabilityAnnotations]
	if !passed {
		if c.sandbox.PodName == "" {
			return demandNone, "", nil // not a pod: nothing to ask the agent about
		}
		return demandUnknown, "", nil
	}
	var annotations map[string]string
	if err := json.Unmarshal(raw, &annotations); err != nil {
		return demandUnknown, "", types.NewError(types.ErrDecodingFailure, "reading the pod's annotations: "+err.Error(), "")
	}
	networks := annotations[wire.AnnotationNetworks]
	if !c.besideMultus() {
		c.npwg = wire.NPWGOf(annotations)
	}
	if blank(networks) && c.npwg == nil {
		return demandNone, "", nil
	}
	return demandNetworks, networks, nil
}

// networks is the pod's annotation, and whether it has one. Where the runtime
// passes no annotations, the agent alone can tell: a pod that runs without an
// interface that it asked for would be worse than one that starts late.
func (c *command) networks() (annotation string, asked bool, err error) {
	demanded, annotation, err := c.demand()
	if err != nil || demanded != demandUnknown {
		return annotation, demanded == demandNetworks, err
	}
	response, err := c.call(wire.Request{Op: wire.OpPodNetworks, Sandbox: c.sandbox}, askTimeout)
	if err != nil {
		return "", false, cniError(err)
	}
	if !c.besideMultus() {
		c.npwg = response.NPWG
	}
	return response.Networks, !blank(response.Networks) || c.npwg != nil, nil
}

// blank: a running pod may have given up all its networks, and so may the pod whose
// sandbox is made anew.
func blank(annotation string) bool { return strings.TrimSpace(annotation) == "" }

// besideMultus: where the cluster's network is Multus, or Multus is what calls us,
// its annotations are for it.
func (c *command) besideMultus() bool {
	return c.config.UnderMultus || slices.ContainsFunc(c.wrapped.Plugins, func(p *libcni.PluginConfig) bool {
		return p.Network.Type == "multus" || p.Network.Type == "multus-shim"
	})
}

// call asks the agent one thing on a connection of its own.
func (c *command) call(request wire.Request, timeout time.Duration) (*wire.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	client, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	return client.Call(ctx, request)
}

func (c *command) dial(ctx context.Context) (*wire.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return wire.Dial(ctx, c.config.Socket)
}

// own says whether an error is the agent's answer, not its silence.
func own(err error) bool {
	var answer *wire.Error
	return errors.As(err, &answer)
}

// cniError gives an error from the agent the form that the runtime prints.
func cniError(err error) error {
	var answer *wire.Error
	if errors.As(err, &answer) {
		return types.NewError(answer.Code, "netplane: "+answer.Msg, "")
	}
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("netplane agent on this node %s: %v", silence(err), err), "")
}

// silence says why the agent gave no answer.
func silence(err error) string {
	switch {
	case unheard(err):
		return "is not running"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "did not answer in time"
	}
	return "gave no answer"
}

// wrappedError tells which network failed, and keeps the plugin's error code.
func (c *command) wrappedError(err error) error { return networkError(c.wrapped.Name, err) }

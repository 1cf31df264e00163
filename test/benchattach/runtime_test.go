// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"context"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// cniTimeout bounds one command.
const cniTimeout = time.Minute

// runtimeConf is what a runtime passes for one attachment of a pod.
func runtimeConf(p *pod, ifname string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.id, NetNS: p.netns, IfName: ifname,
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", p.id},
			{"K8S_POD_INFRA_CONTAINER_ID", p.id}, {"K8S_POD_UID", "uid-" + p.id},
		},
	}
}

// attachment is a configuration list and the interface that it is to make.
type attachment struct {
	list   *libcni.NetworkConfigList
	ifname string
	// capabilities are passed where the configuration asks for them.
	capabilities map[string]any
}

func (a *attachment) runtime(p *pod) *libcni.RuntimeConf {
	rt := runtimeConf(p, a.ifname)
	rt.CapabilityArgs = a.capabilities
	return rt
}

// runtime executes plugins as containerd and Multus do: through libcni, one
// attachment of a pod after another.
type runtime struct {
	cni         *libcni.CNIConfig
	attachments []attachment
}

func (r *runtime) add(p *pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), cniTimeout)
	defer cancel()
	for i := range r.attachments {
		a := &r.attachments[i]
		if _, err := r.cni.AddNetworkList(ctx, a.list, a.runtime(p)); err != nil {
			return err
		}
	}
	return nil
}

func (r *runtime) del(p *pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), cniTimeout)
	defer cancel()
	for i := len(r.attachments) - 1; i >= 0; i-- {
		a := &r.attachments[i]
		if err := r.cni.DelNetworkList(ctx, a.list, a.runtime(p)); err != nil {
			return err
		}
	}
	return nil
}

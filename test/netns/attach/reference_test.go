// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// buildReference builds plugins of the CNI project, of the version that the node
// image has, and returns their folder.
var buildReference = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "np-ref")
	if err != nil {
		return "", err
	}
	const module = "github.com/containernetworking/plugins/plugins/"
	command := exec.Command("go", "build", "-mod=readonly", "-o", dir, module+"main/macvlan", module+"main/bridge", module+"main/ipvlan", module+"main/host-device",
		module+"meta/tuning", module+"meta/sbr", module+"meta/portmap", module+"meta/bandwidth", module+"ipam/static")
	command.Dir = filepath.Join("..", "..", "nodeimage", "plugins")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the reference plugins: %w: %s", err, out)
	}
	return dir, nil
})

// reference is a node on which a reference plugin makes the pods' interfaces.
type reference struct {
	node *space
	pod  *space
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

// newReference has a list of plugins give the pod's interface the MAC and the
// addresses that ours has, and routes.
func newReference(t *testing.T, node *space, version, ifName string, plugins []map[string]any, routes [][2]string, ours *current.Result) *reference {
	t.Helper()
	bin, err := buildReference()
	must(t, err)
	var mac string
	var addresses []map[string]any
	for i, iface := range ours.Interfaces {
		if iface.Name != ifName || iface.Sandbox == "" {
			continue
		}
		mac = iface.Mac
		for _, ip := range ours.IPs {
			if ip.Interface != nil && *ip.Interface == i {
				address := map[string]any{"address": ip.Address.String()}
				if ip.Gateway != nil {
					address["gateway"] = ip.Gateway.String()
				}
				addresses = append(addresses, address)
			}
		}
	}
	var ways []map[string]any
	for _, r := range routes {
		ways = append(ways, map[string]any{"dst": r[0], "gw": r[1]})
	}
	plugins[0]["ipam"] = map[string]any{"type": "static", "addresses": addresses, "routes": ways}
	plugins[0]["capabilities"] = map[string]bool{"mac": true}
	raw, err := json.Marshal(map[string]any{"cniVersion": version, "name": "reference", "plugins": plugins})
	must(t, err)
	r := &reference{node: node, pod: newSpace(t, "reference"), cni: libcni.NewCNIConfig([]string{bin}, nil)}
	r.list, err = libcni.NetworkConfFromBytes(raw)
	must(t, err)
	r.rt = &libcni.RuntimeConf{ContainerID: "reference", NetNS: r.pod.path, IfName: ifName, CapabilityArgs: map[string]any{"mac": mac}}
	return r
}

func (r *reference) run(f func(ctx context.Context) error) error {
	return r.node.in(func() error { return f(context.Background()) })
}

func (r *reference) add() (result *current.Result, err error) {
	err = r.run(func(ctx context.Context) error {
		raw, err := r.cni.AddNetworkList(ctx, r.list, r.rt)
		if err == nil {
			result, err = current.GetResult(raw)
		}
		return err
	})
	return result, err
}

func (r *reference) del() error {
	return r.run(func(ctx context.Context) error { return r.cni.DelNetworkList(ctx, r.list, r.rt) })
}

// sweep removes what an ADD that failed has left under a temporary name.
func (r *reference) sweep(t *testing.T) {
	t.Helper()
	for _, name := range r.pod.links(t) {
		if strings.HasPrefix(name, "veth") {
			must(t, r.pod.LinkDel(r.pod.link(t, name)))
		}
	}
}

func (r *reference) check() error {
	return r.run(func(ctx context.Context) error { return r.cni.CheckNetworkList(ctx, r.list, r.rt) })
}

func (r *reference) gc() error {
	return r.run(func(ctx context.Context) error {
		return r.cni.GCNetworkList(ctx, r.list, &libcni.GCArgs{})
	})
}

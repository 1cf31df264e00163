// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/install"
	"github.com/netplane/netplane/cni/wire"
)

// build makes the CNI binary as the image has it.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "np-bin")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "netplane")
	command := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "github.com/netplane/netplane/cni/plugin")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

// host is a node with a runtime, a cluster network and our binary on top.
type host struct {
	*agent
	t    *testing.T
	bin  string
	conf string
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList

	installer *install.Installer
	// started, if set, is given the process of each execute.
	started func(*os.Process)
}

// The cluster's network: a plugin that notes what it is asked and does nothing.
const (
	clusterPlugin = `#!/bin/sh
cat > "$0.stdin.$CNI_COMMAND"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> "$0.calls"
if [ -f "$0.fail.$CNI_COMMAND" ]; then cat "$0.fail.$CNI_COMMAND"; exit 1; fi
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"veth1"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"'$CNI_NETNS'"}],"ips":[{"interface":1,"address":"10.244.0.9/24","gateway":"10.244.0.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.96.0.10"]}}';;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}';;
esac
`
	clusterConf = `{"cniVersion":"1.1.0","name":"cluster-net","plugins":[{"type":"cluster","capabilities":{"portMappings":true}}]}`
)

func newHost(t *testing.T, networks ...*v1alpha1.Network) *host {
	t.Helper()
	binary, err := build()
	must(t, err)
	must(t, os.RemoveAll(libcni.CacheDir))
	dir := t.TempDir()
	h := &host{t: t, agent: newAgent(t, wired(t, "node")[0], networks...), bin: filepath.Join(dir, "bin"), conf: filepath.Join(dir, "net.d")}
	must(t, os.Mkdir(h.bin, 0o755))
	must(t, os.Mkdir(h.conf, 0o755))
	must(t, os.WriteFile(filepath.Join(h.bin, "cluster"), []byte(clusterPlugin), 0o755))
	must(t, os.WriteFile(filepath.Join(h.conf, "10-cluster.conflist"), []byte(clusterConf), 0o600))
	installer, err := install.New(install.Config{
		Source: binary, BinDir: h.bin, ConfDir: h.conf, Socket: h.socket(),
		SpoolDir: filepath.Join(h.state, "spool"), Journal: filepath.Join(h.state, "addresses.journal"),
	})
	must(t, err)
	h.installer = installer
	must(t, installer.Sync(t.Context()))
	h.cni = libcni.NewCNIConfig([]string{h.bin}, nil)
	h.list, err = libcni.NetworkConfFromFile(filepath.Join(h.conf, install.ConfName))
	must(t, err)
	return h
}

// runtimeConf is what containerd passes. Nil annotations are those of a
// runtime that passes none.
func (h *host) runtimeConf(id string, pod *space, annotations map[string]string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: id, NetNS: pod.path, IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "pod-" + id},
			{"K8S_POD_INFRA_CONTAINER_ID", id}, {"K8S_POD_UID", "uid-" + id},
		},
		CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}},
	}
	if annotations != nil {
		rt.CapabilityArgs["io.kubernetes.cri.pod-annotations"] = annotations
	}
	return rt
}

func asks(networks string) map[string]string {
	return map[string]string{"other": "x", wire.AnnotationNetworks: networks}
}

// run calls the runtime's library inside the node's namespace.
func (h *host) run(f func(ctx context.Context) error) error {
	return h.node.in(func() error { return f(context.Background()) })
}

func (h *host) cniAdd(rt *libcni.RuntimeConf) (result *current.Result, err error) {
	err = h.run(func(ctx context.Context) error {
		raw, err := h.cni.AddNetworkList(ctx, h.list, rt)
		if err == nil {
			result, err = current.GetResult(raw)
		}
		return err
	})
	return result, err
}

func (h *host) cniDel(rt *libcni.RuntimeConf) error {
	return h.run(func(ctx context.Context) error { return h.cni.DelNetworkList(ctx, h.list, rt) })
}

func (h *host) cniCheck(rt *libcni.RuntimeConf) error {
	return h.run(func(ctx context.Context) error { return h.cni.CheckNetworkList(ctx, h.list, rt) })
}

func (h *host) cniStatus() error {
	return h.run(func(ctx context.Context) error { return h.cni.GetStatusNetworkList(ctx, h.list) })
}

// calls returns what the cluster's plugin was asked since the last look.
func (h *host) calls() []string { return h.callsOf("cluster") }

func (h *host) callsOf(plugin string) []string {
	h.t.Helper()
	file := filepath.Join(h.bin, plugin+".calls")
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	must(h.t, err)
	must(h.t, os.Remove(file))
	return strings.Split(strings.TrimSpace(string(raw)), "\n")
}

// failing makes the cluster's plugin fail a command.
func (h *host) failing(command string, code uint, msg string) {
	h.t.Helper()
	raw := fmt.Sprintf(`{"cniVersion":"1.1.0","code":%d,"msg":%q}`, code, msg)
	must(h.t, os.WriteFile(filepath.Join(h.bin, "cluster.fail."+command), []byte(raw), 0o600))
}

// clusterAnswers has the cluster's plugin answer ADD otherwise.
func (h *host) clusterAnswers(t *testing.T, result string) {
	t.Helper()
	before, rest, ok := strings.Cut(clusterPlugin, "ADD) echo '")
	_, after, found := strings.Cut(rest, "';;")
	if !ok || !found {
		t.Fatal("the cluster's plugin has no answer to replace")
	}
	must(t, os.WriteFile(filepath.Join(h.bin, "cluster"), []byte(before+"ADD) echo '"+result+"';;"+after), 0o755))
}

// wantError looks into the error that the runtime would put into the pod's events.
func wantError(t *testing.T, err error, code uint, text string) {
	t.Helper()
	var known *types.Error
	if !errors.As(err, &known) || known.Code != code || !strings.Contains(known.Error(), text) {
		t.Errorf("got %v, want code %d and %q", err, code, text)
	}
}

func names(result *current.Result) []string {
	var out []string
	for _, iface := range result.Interfaces {
		text := iface.Name
		for _, ip := range result.IPs {
			if ip.Interface != nil && result.Interfaces[*ip.Interface] == iface {
				text += " " + ip.Address.String()
			}
		}
		out = append(out, text)
	}
	return out
}

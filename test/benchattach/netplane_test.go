// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/install"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
	"github.com/netplane/netplane/test/isolated"
)

// annotationsCapability is what runtimes call the capability by which they
// pass a pod's annotations.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// node is netplane on this node: the CNI binary and its configuration as the
// agent installs them, the agent's server, links and addresses. Only the API
// server's side is made up; no request of an ADD or DEL goes there anyway.
type node struct {
	networks map[string]*v1alpha1.Network
	manager  *ipam.Manager
	cni      *libcni.CNIConfig
	list     *libcni.NetworkConfigList
}

func (n *node) Get(name string) (*v1alpha1.Network, bool) {
	out, ok := n.networks[name]
	return out, ok
}

func (n *node) Labels(string) (map[string]string, bool) { return nil, true }

func (n *node) Annotations(_, _ string) (map[string]string, bool) { return nil, false }

func (n *node) OfPod(types.UID) []*v1alpha1.IPClaim { return nil }

func (n *node) Attached(types.NamespacedName, types.UID, string, []podnetworks.Attachment, []podnetworks.Use) {
}

func (n *node) Detached(types.UID, string) {}

func (n *node) AddressTaken(types.NamespacedName, types.UID, string) {}

// running knows no pod: none of them changes its annotation.
type running struct{ attach.Running }

func (running) Networks(context.Context, types.NamespacedName, types.UID, bool) (annotation string, known bool, err error) {
	return "", false, nil
}

// topology is the node's inventory; what it does not answer is not asked for
// macvlans and ports of bridges.
type topology struct{ attach.Topology }

// Parents takes physical networks to be named after their NIC.
func (topology) Parents(physicalNet string) []string { return []string{physicalNet} }

func (topology) Refusal(string) (reason, message string, refused bool) { return "", "", false }

func (topology) Bridged(nic string, _ *v1alpha1.Network) (bridged bool, refusal string) {
	return nic == nicBridged, ""
}

func newNode(b *testing.B) *node {
	b.Helper()
	state, err := os.MkdirTemp("", "np") // the socket's path must be short
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(state) })
	config := attach.Config{StateDir: state}
	journal := filepath.Join(state, "addresses.journal")
	n := &node{networks: map[string]*v1alpha1.Network{}, manager: ipam.New(ipam.Config{JournalPath: journal})}
	must(b, n.manager.Replay(func(ipam.Lease) bool { return true }))
	b.Cleanup(func() { _ = n.manager.Close() })
	for i := range 4 {
		n.network(b, networkName(shape{}, i), i, false)
		n.network(b, networkName(shape{dual: true}, i), i, true)
	}
	n.serve(b, config)
	n.install(b, install.Config{Socket: config.Socket(), SpoolDir: string(config.Spool()), Journal: journal})
	return n
}

// networkName names the Network of a pod's interface.
func networkName(s shape, i int) string {
	if s.dual {
		return fmt.Sprintf("dual-%d", i)
	}
	return fmt.Sprintf("v4-%d", i)
}

// network makes a Network and gives the node blocks for a thousand pods.
func (n *node) network(b *testing.B, name string, i int, dual bool) {
	b.Helper()
	second := i
	spec := v1alpha1.NetworkSpec{PhysicalNet: nicPlain, Plugin: v1alpha1.PluginMacvlan}
	if i == 0 {
		spec.PhysicalNet, spec.Plugin = nicBridged, v1alpha1.PluginBridge
	}
	if dual {
		second += 10
		spec.Subnet6 = v1alpha1.CIDR(fmt.Sprintf("fd00:%d::/64", second))
	}
	spec.Subnet = v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/16", second))
	if i == 0 { // with several gateways each interface would get a routing table, which the other ways do not make
		spec.Gateway = v1alpha1.IP(fmt.Sprintf("10.%d.0.1", second))
	}
	n.networks[name] = &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Generation: 1}, Spec: spec,
		Status: v1alpha1.NetworkStatus{Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: 1,
		}}},
	}
	plan, err := addressing.NewPlan(name, &spec)
	must(b, err)
	var blocks []ipam.Block
	capacity := 0
	for prefix := range plan.Candidates("worker") {
		blocks = append(blocks, ipam.Block{Prefix: prefix, UID: types.UID(prefix.String())})
		if capacity += plan.Capacity(prefix); capacity >= 1000 {
			break
		}
	}
	n.manager.SetBlocks(name, types.UID(name), plan, blocks)
}

// serve runs the agent's server until the benchmark ends.
func (n *node) serve(b *testing.B, config attach.Config) {
	b.Helper()
	links, err := link.Open(link.Config{})
	must(b, err)
	b.Cleanup(links.Close)
	server, err := attach.NewServer(config, attach.Deps{
		Networks: n, Namespaces: n, Pods: n, Claims: n, Addresses: n.manager, PodLinks: links, HostLinks: links, Prober: links, Taken: n, Reporter: n,
		Running: running{}, NICs: links, Parents: links,
		Topology: func() attach.Topology { return topology{} },
		ServiceCIDRs: func() []netip.Prefix {
			return []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
		},
	})
	must(b, err)
	must(b, server.ReplaySpool(b.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		client, err := wire.Dial(b.Context(), config.Socket())
		if err == nil {
			_ = client.Close()
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("the agent's socket: %v", err)
		}
	}
}

// install puts the CNI binary and configuration where a runtime finds them.
// What they wrap is never asked: a Network is on eth0.
func (n *node) install(b *testing.B, config install.Config) {
	b.Helper()
	dir := b.TempDir()
	config.Source, config.BinDir, config.ConfDir = filepath.Join(dir, "netplane"), filepath.Join(dir, "bin"), filepath.Join(dir, "net.d")
	must(b, os.Mkdir(config.BinDir, 0o755))
	must(b, os.Mkdir(config.ConfDir, 0o755))
	must(b, os.WriteFile(filepath.Join(config.ConfDir, "10-cluster.conflist"), []byte(`{"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"loopback"}]}`), 0o600))
	buildProgram(b, config.Source, "github.com/netplane/netplane/cni/plugin")
	installer, err := install.New(config)
	must(b, err)
	must(b, installer.Sync(b.Context()))
	n.cni = libcni.NewCNIConfig([]string{config.BinDir, referencePlugins(b)}, nil)
	n.list, err = libcni.NetworkConfFromFile(filepath.Join(config.ConfDir, install.ConfName))
	must(b, err)
}

// way has one pod of the shape live until the benchmark ends: bridge, rules and
// the node's own addresses are there, as on every node but an empty one.
func (n *node) way(b *testing.B, s shape) way {
	b.Helper()
	var networks []string
	for i := range s.interfaces {
		networks = append(networks, networkName(s, i)+"@"+ifName(i))
	}
	annotations := map[string]string{wire.AnnotationNetworks: strings.Join(networks, ",")}
	out := &runtime{cni: n.cni, attachments: []attachment{{
		list: n.list, ifname: ifName(0), capabilities: map[string]any{annotationsCapability: annotations},
	}}}
	resident := &pod{id: "resident-" + s.String(), netns: isolated.NewNamespace(b)}
	must(b, out.add(resident))
	b.Cleanup(func() {
		if err := out.del(resident); err != nil {
			b.Error(err)
		}
	})
	return out
}

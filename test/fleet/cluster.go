// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fleet runs netplane's real agent on nodes that are network
// namespaces, against a real etcd and kube-apiserver with the agents' role and
// all admission policies as shipped. It is for the benchmarks, which want many
// pods on few nodes; their packages lie two folders below the root, and their
// TestMain is isolated.Main with isolated.Loopback.
package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/isolated"
)

const (
	// root is the repository, from a benchmark's own folder.
	root      = "../.."
	manifests = root + "/manifests/base"
	nodeClaim = "authentication.kubernetes.io/node-name"
	// patience bounds every wait for others.
	patience = 2 * time.Minute
)

// AgentUser is who the agents are to the API server.
const AgentUser = "system:serviceaccount:netplane-system:netplane-agent"

// Cluster is an API server with what a cluster with netplane has.
type Cluster struct {
	client.Client // the administrator's
	Config        *rest.Config
}

// Start runs an API server until the benchmark ends.
func Start(b *testing.B, options ...apiserver.Option) *Cluster {
	b.Helper()
	c := &Cluster{}
	c.Config = apiserver.Start(b, append(options, apiserver.WithAPIServerFlag("advertise-address", isolated.Advertised))...)
	c.Config.QPS = -1
	var err error
	c.Client, err = apiserver.NewClient(c.Config)
	Must(b, err)
	files, err := filepath.Glob(filepath.Join(manifests, "policies", "*.yaml"))
	Must(b, err)
	files = append([]string{filepath.Join(manifests, "namespace.yaml"), filepath.Join(manifests, "agent", "rbac.yaml")}, files...)
	Must(b, apiserver.Apply(b.Context(), c.Client, files...))
	return c
}

// Must ends the benchmark if err is not nil.
func Must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// Await wants ok to return no error within two minutes.
func Await(b *testing.B, what string, ok func() error) {
	b.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// NetworkName names the networks that Furnish makes, from 1 on.
func NetworkName(i int) string { return fmt.Sprintf("net%d", i) }

// Furnish makes so many networks, of a /12 each and both families, on so many
// physical networks, phy-net1 and up, in turn. Pods can be made afterwards.
func (c *Cluster) Furnish(b *testing.B, networks, physical int) {
	b.Helper()
	Must(b, c.Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}))
	for i := 1; i <= physical; i++ {
		Must(b, c.Create(b.Context(), &v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: physicalName(i)}}))
	}
	for i := 1; i <= networks; i++ {
		network := c.Network(b, NetworkName(i), &v1alpha1.NetworkSpec{
			PhysicalNet: physicalName((i-1)%physical + 1), Plugin: v1alpha1.PluginMacvlan,
			Subnet: v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/12", 16*(i-1))), Subnet6: v1alpha1.CIDR(fmt.Sprintf("fd00:10:%d::/64", i)),
		})
		if i == networks {
			c.AwaitPolicies(b, network)
		}
	}
}

func physicalName(i int) string { return fmt.Sprintf("phy-net%d", i) }

// Network makes a Network that the controller would find nothing against.
func (c *Cluster) Network(b *testing.B, name string, spec *v1alpha1.NetworkSpec) *v1alpha1.Network {
	b.Helper()
	network := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: *spec}
	Must(b, c.Create(b.Context(), network))
	network.Status.ObservedGeneration = network.Generation
	apimeta.SetStatusCondition(&network.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: network.Generation,
	})
	Must(b, c.Status().Update(b.Context(), network))
	return network
}

// AwaitPolicies waits until the policy on blocks is in force: the API server
// takes a moment to learn of it.
func (c *Cluster) AwaitPolicies(b *testing.B, network *v1alpha1.Network) {
	b.Helper()
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, netip.MustParsePrefix("203.0.113.0/28"))},
		Spec:       v1alpha1.IPBlockSpec{Network: network.Name, NetworkUID: network.UID, CIDR: "203.0.113.0/28", NodeName: "n", NodeUID: "n"},
	}
	Await(b, "the policies to be in force", func() error {
		err := c.Create(b.Context(), block.DeepCopy(), client.DryRunAll)
		if err != nil && strings.Contains(err.Error(), "netplane-ipblock-in-network") {
			return nil
		}
		return fmt.Errorf("the answer to a block outside its network is %v", err) //nolint:errorlint // err may be nil
	})
}

// AsAgent is the configuration of a node's agent.
func (c *Cluster) AsAgent(node string) *rest.Config {
	config := rest.CopyConfig(c.Config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: AgentUser, Groups: []string{"system:serviceaccounts", "system:authenticated"}, Extra: map[string][]string{nodeClaim: {node}},
	}
	return config
}

// Metric sums up the samples of a counter of the API server whose labels
// contain all texts.
func (c *Cluster) Metric(b *testing.B, name string, labels ...string) float64 {
	b.Helper()
	config := rest.CopyConfig(c.Config)
	config.GroupVersion, config.NegotiatedSerializer = &corev1.SchemeGroupVersion, clientgoscheme.Codecs
	direct, err := rest.UnversionedRESTClientFor(config)
	Must(b, err)
	raw, err := direct.Get().AbsPath("/metrics").DoRaw(context.WithoutCancel(b.Context()))
	Must(b, err)
	return sum(b, string(raw), name, labels...)
}

// sum reads the Prometheus text format.
func sum(b *testing.B, text, name string, labels ...string) float64 {
	b.Helper()
	total := 0.0
lines:
	for line := range strings.Lines(text) {
		rest, found := strings.CutPrefix(line, name)
		if !found || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue lines
			}
		}
		var value float64
		_, err := fmt.Sscan(rest[strings.LastIndex(rest, "}")+1:], &value)
		Must(b, err)
		total += value
	}
	return total
}

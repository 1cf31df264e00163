// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
)

const (
	manifests = "../../manifests/base"
	agentUser = "system:serviceaccount:netplane-system:netplane-agent"
	nodeClaim = "authentication.kubernetes.io/node-name"
	// patience bounds every wait for others.
	patience = 2 * time.Minute
)

// cluster is a real etcd and kube-apiserver with the agents' role and all
// admission policies as shipped.
type cluster struct {
	client.Client // the administrator's
	config        *rest.Config
	scheme        *runtime.Scheme
}

func startCluster(b *testing.B, options ...apiserver.Option) *cluster {
	b.Helper()
	c := &cluster{scheme: runtime.NewScheme()}
	must(b, errors.Join(clientgoscheme.AddToScheme(c.scheme), v1alpha1.AddToScheme(c.scheme), networkingv1.AddToScheme(c.scheme)))
	c.config = apiserver.Start(b, append(options, apiserver.WithAPIServerFlag("advertise-address", advertised))...)
	c.config.QPS = -1
	var err error
	c.Client, err = client.New(c.config, client.Options{Scheme: c.scheme})
	must(b, err)
	files, err := filepath.Glob(filepath.Join(manifests, "policies", "*.yaml"))
	must(b, err)
	for _, file := range append([]string{filepath.Join(manifests, "namespace.yaml"), filepath.Join(manifests, "agent", "rbac.yaml")}, files...) {
		c.apply(b, file)
	}
	return c
}

// apply creates every object of a manifest.
func (c *cluster) apply(b *testing.B, path string) {
	b.Helper()
	file, err := os.Open(path)
	must(b, err)
	defer func() { _ = file.Close() }()
	for decoder := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
		var obj unstructured.Unstructured
		if err := decoder.Decode(&obj); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			b.Fatalf("reading %s: %v", path, err)
		}
		if len(obj.Object) > 0 {
			must(b, c.Create(b.Context(), &obj))
		}
	}
}

// network makes a Network that the controller would find nothing against.
func (c *cluster) network(b *testing.B, name string, spec *v1alpha1.NetworkSpec) *v1alpha1.Network {
	b.Helper()
	network := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: *spec}
	must(b, c.Create(b.Context(), network))
	network.Status.ObservedGeneration = network.Generation
	apimeta.SetStatusCondition(&network.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: network.Generation,
	})
	must(b, c.Status().Update(b.Context(), network))
	return network
}

// awaitPolicies waits until the policy on blocks is in force: the API server
// takes a moment to learn of it.
func (c *cluster) awaitPolicies(b *testing.B, network *v1alpha1.Network) {
	b.Helper()
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, netip.MustParsePrefix("203.0.113.0/28"))},
		Spec:       v1alpha1.IPBlockSpec{Network: network.Name, NetworkUID: network.UID, CIDR: "203.0.113.0/28", NodeName: "n", NodeUID: "n"},
	}
	await(b, "the policies to be in force", func() error {
		err := c.Create(b.Context(), block.DeepCopy(), client.DryRunAll)
		if err != nil && strings.Contains(err.Error(), "netplane-ipblock-in-network") {
			return nil
		}
		return fmt.Errorf("the answer to a block outside its network is %v", err) //nolint:errorlint // err may be nil
	})
}

// asAgent is the configuration of a node's agent.
func (c *cluster) asAgent(node string) *rest.Config {
	config := rest.CopyConfig(c.config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: agentUser, Groups: []string{"system:serviceaccounts", "system:authenticated"}, Extra: map[string][]string{nodeClaim: {node}},
	}
	return config
}

// metric sums up the samples of a counter of the API server whose labels
// contain all texts.
func (c *cluster) metric(b *testing.B, name string, labels ...string) float64 {
	b.Helper()
	config := rest.CopyConfig(c.config)
	config.GroupVersion, config.NegotiatedSerializer = &corev1.SchemeGroupVersion, clientgoscheme.Codecs
	direct, err := rest.UnversionedRESTClientFor(config)
	must(b, err)
	raw, err := direct.Get().AbsPath("/metrics").DoRaw(context.WithoutCancel(b.Context()))
	must(b, err)
	total := 0.0
lines:
	for line := range strings.Lines(string(raw)) {
		rest, found := strings.CutPrefix(line, name+"{")
		if !found {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(rest, label) {
				continue lines
			}
		}
		var value float64
		_, err := fmt.Sscan(rest[strings.LastIndex(rest, "}")+1:], &value)
		must(b, err)
		total += value
	}
	return total
}

// await wants ok to return no error in time.
func await(b *testing.B, what string, ok func() error) {
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

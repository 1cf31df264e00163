// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	contextVariable = "NETPLANE_E2E_CONTEXT"
	defaultContext  = "kind-netplane"
	// cure ends every message about something that is missing.
	cure = "; `make demo` brings the cluster up"
)

// The example's objects, as manifests/examples names them.
const (
	netManagement  = "management"
	netData        = "data"
	physManagement = "phy-net0"
	physData       = "phy-net1"
)

// cluster is what the tests work with.
type cluster struct {
	// name is kind's, and the prefix of the nodes' names.
	name      string
	config    *rest.Config
	client    client.Client
	clientset kubernetes.Interface
}

var env cluster

// node is the full name of one of kind's nodes: control-plane, worker, worker2, worker3.
func (c *cluster) node(suffix string) string { return c.name + "-" + suffix }

func TestMain(m *testing.M) {
	// The client wants to be told where to log; its answers say enough.
	log.SetLogger(klog.Background())
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	err := env.connect(ctx)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "the end to end tests cannot run:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := env.removePool(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "removing Network", poolNetwork+":", err)
		code = 1
	}
	os.Exit(code)
}

func (c *cluster) connect(ctx context.Context) error {
	name := cmp.Or(os.Getenv(contextVariable), defaultContext)
	c.name = strings.TrimPrefix(name, "kind-")
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), &clientcmd.ConfigOverrides{CurrentContext: name}).ClientConfig()
	if err != nil {
		return fmt.Errorf("reading kubectl context %s: %w%s", name, err, cure)
	}
	config.QPS, config.Burst = 100, 200
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	c.config = config
	if c.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("reaching the API server of %s: %w%s", name, err, cure)
	}
	if c.clientset, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if err := c.checkNodes(ctx); err != nil {
		return err
	}
	if err := poll(ctx, c.checkParts); err != nil {
		return err
	}
	return c.installExample(ctx)
}

// poll repeats check until it succeeds or ctx ends, and returns its last error.
func poll(ctx context.Context, check func(context.Context) error) error {
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (c *cluster) checkNodes(ctx context.Context) error {
	for _, suffix := range []string{"control-plane", "worker", "worker2", "worker3"} {
		name := c.node(suffix)
		if err := c.client.Get(ctx, client.ObjectKey{Name: name}, &corev1.Node{}); err != nil {
			return fmt.Errorf("reading node %s: %w%s", name, err, cure)
		}
		if _, err := onNode(ctx, name, "", "true"); err != nil {
			return fmt.Errorf("entering node %s with docker exec: %w%s", name, err, cure)
		}
	}
	return nil
}

// checkParts says which part of netplane is missing or not ready.
func (c *cluster) checkParts(ctx context.Context) error {
	if err := c.client.List(ctx, &v1alpha1.NetworkList{}); err != nil {
		return fmt.Errorf("netplane's CRDs are missing: %w: kubectl apply -k manifests/base", err)
	}
	for _, name := range []string{"netplane-scheduler", "netplane-controller"} {
		var d appsv1.Deployment
		if err := c.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &d); err != nil {
			return fmt.Errorf("Deployment %s is missing: %w: kubectl apply -k manifests/base", name, err)
		}
		if d.Status.AvailableReplicas < 1 {
			return fmt.Errorf("Deployment %s has no available replica: see its pods in %s", name, v1alpha1.SystemNamespace)
		}
	}
	var ds appsv1.DaemonSet
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.AgentAppLabel}, &ds); err != nil {
		return fmt.Errorf("DaemonSet %s is missing: %w: kubectl apply -k manifests/base", v1alpha1.AgentAppLabel, err)
	}
	if ds.Status.NumberReady < ds.Status.DesiredNumberScheduled || ds.Status.DesiredNumberScheduled == 0 {
		return fmt.Errorf("%d of %d agents are ready: see the pods of DaemonSet %s in %s",
			ds.Status.NumberReady, ds.Status.DesiredNumberScheduled, v1alpha1.AgentAppLabel, v1alpha1.SystemNamespace)
	}
	return nil
}

// installExample creates the example's physical and logical networks, as they
// stand in manifests/examples, unless they are there.
func (c *cluster) installExample(ctx context.Context) error {
	dir := filepath.Join("..", "..", "manifests", "examples")
	if err := createAll[v1alpha1.PhysicalNetwork](ctx, c.client, filepath.Join(dir, "physicalnetworks.yaml")); err != nil {
		return err
	}
	if err := createAll[v1alpha1.Network](ctx, c.client, filepath.Join(dir, "networks.yaml")); err != nil {
		return err
	}
	return poll(ctx, func(ctx context.Context) error {
		for _, name := range []string{netManagement, netData} {
			var n v1alpha1.Network
			if err := c.client.Get(ctx, client.ObjectKey{Name: name}, &n); err != nil {
				return err
			}
			if ready := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady); ready == nil || ready.Status != "True" {
				return fmt.Errorf("the example's Network %s is not ready: %+v", name, ready)
			}
		}
		return nil
	})
}

func createAll[T any, P interface {
	*T
	client.Object
}](ctx context.Context, c client.Client, file string) error {
	raw, err := os.ReadFile(file) // #nosec G304 -- a manifest of this repository
	if err != nil {
		return fmt.Errorf("reading an example: %w", err)
	}
	for doc := range strings.SplitSeq(string(raw), "\n---\n") {
		obj := P(new(T))
		if err := yaml.UnmarshalStrict([]byte(doc), obj); err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		if err := c.Create(ctx, obj); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating %s of %s: %w", obj.GetName(), file, err)
		}
	}
	return nil
}

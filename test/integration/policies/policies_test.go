// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policies tries the roles and ValidatingAdmissionPolicies of
// manifests/base on a real API server, with the rights and tokens that
// netplane's parts have in a cluster.
package policies

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
)

const (
	agentUser      = "system:serviceaccount:netplane-system:netplane-agent"
	controllerUser = "system:serviceaccount:netplane-system:netplane-controller"
	nodeClaim      = "authentication.kubernetes.io/node-name"
)

// environment is shared by the tests of this package: one API server with
// netplane's roles and policies in force.
type environment struct {
	config *rest.Config
	// admin may do everything that no policy forbids.
	admin client.Client
}

var env environment

func TestMain(m *testing.M) {
	os.Exit(apiserver.Main(m, func(config *rest.Config) {
		if err := env.prepare(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}))
}

func (e *environment) prepare(config *rest.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e.config = config
	var err error
	if e.admin, err = apiserver.NewClient(config); err != nil {
		return err
	}
	const base = apiserver.Manifests
	files, err := filepath.Glob(filepath.Join(base, "policies", "*.yaml"))
	if err != nil {
		return err
	}
	files = append([]string{filepath.Join(base, "namespace.yaml")}, files...)
	for _, part := range []string{"agent", "controller", "scheduler"} {
		files = append(files, filepath.Join(base, part, "rbac.yaml"))
	}
	if err := apiserver.Apply(ctx, e.admin, files...); err != nil {
		return err
	}
	return e.awaitPolicies(ctx)
}

// awaitPolicies waits until each policy refuses what it is there for: the API
// server takes a moment to learn of a new one.
func (e *environment) awaitPolicies(ctx context.Context) error {
	network := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "p", Plugin: v1alpha1.PluginBridge, Subnet: "192.0.2.0/24"},
	}
	if err := e.admin.Create(ctx, network); err != nil {
		return err
	}
	agent, err := e.as(agentUser, map[string][]string{nodeClaim: {"no-such-node"}})
	if err != nil {
		return err
	}
	controller, err := e.as(controllerUser, nil)
	if err != nil {
		return err
	}
	statusPod := newPod("probe", nil)
	statusPod.Annotations = map[string]string{v1alpha1.AnnotationNetworkStatus: "[]"}
	probes := map[string]func() error{
		"netplane-pod-networks":   func() error { return e.admin.Create(ctx, askingPod("probe", nil), client.DryRunAll) },
		"netplane-network-status": func() error { return e.admin.Create(ctx, statusPod.DeepCopy(), client.DryRunAll) },
		"netplane-agent-own-node": func() error {
			return agent.Create(ctx, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "probe"}}, client.DryRunAll)
		},
		"netplane-ipblock-in-network": func() error {
			return e.admin.Create(ctx, newBlock(network, "203.0.113.0/28", "n"), client.DryRunAll)
		},
		"netplane-child-services": func() error {
			return controller.Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "probe", Namespace: "default"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}}, client.DryRunAll)
		},
		"netplane-pod-binding": func() error {
			return e.admin.SubResource("binding").Create(ctx, newPod("probe", nil), newBinding("probe", map[string]string{v1alpha1.AnnotationNetworks: "x"}), client.DryRunAll)
		},
	}
	if err := e.admin.Create(ctx, newPod("probe", nil)); err != nil {
		return err
	}
	for policy, try := range probes {
		if err := awaitRefusal(ctx, policy, try); err != nil {
			return err
		}
	}
	return e.admin.Delete(ctx, newPod("probe", nil), client.GracePeriodSeconds(0))
}

func awaitRefusal(ctx context.Context, policy string, try func() error) error {
	for {
		err := try()
		if err != nil && strings.Contains(err.Error(), policy) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("policy %s never came into force; last answer: %v", policy, err) //nolint:errorlint // err may be nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// as returns a client that acts as user; extra is what its token would say.
func (e *environment) as(user string, extra map[string][]string) (client.Client, error) {
	config := rest.CopyConfig(e.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Extra: extra}
	if strings.HasPrefix(user, "system:serviceaccount:") {
		config.Impersonate.Groups = []string{"system:serviceaccounts", "system:authenticated"}
	} else {
		config.Impersonate.Groups = []string{"system:masters", "system:authenticated"}
	}
	return client.New(config, client.Options{Scheme: e.admin.Scheme()})
}

// agentOf is the agent of a node.
func agentOf(t *testing.T, node string) client.Client {
	t.Helper()
	c, err := env.as(agentUser, map[string][]string{nodeClaim: {node}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check compares the error of a write with what it must say; "" means that
// the write must succeed.
func check(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted, want a refusal that says %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("refused with %q\nwant a message with %q", err, want)
	}
}

// create makes an object as administrator and removes it after the test.
func create(t *testing.T, obj client.Object) {
	t.Helper()
	if err := env.admin.Create(t.Context(), obj); err != nil {
		t.Fatalf("preparing %s: %v", obj.GetName(), err)
	}
	removeAfter(t, obj)
}

func removeAfter(t *testing.T, obj client.Object) {
	t.Cleanup(func() {
		err := env.admin.Delete(context.WithoutCancel(t.Context()), obj, client.GracePeriodSeconds(0))
		if client.IgnoreNotFound(err) != nil {
			t.Errorf("removing %s: %v", obj.GetName(), err)
		}
	})
}

func newPod(name string, edit func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "a"}, Annotations: map[string]string{"note": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if edit != nil {
		edit(pod)
	}
	return pod
}

// askingPod asks for a network, without naming a scheduler that knows it.
func askingPod(name string, edit func(*corev1.Pod)) *corev1.Pod {
	return newPod(name, func(pod *corev1.Pod) {
		pod.Annotations[v1alpha1.AnnotationNetworks] = "management@eth0"
		if edit != nil {
			edit(pod)
		}
	})
}

// placedPod asks for a network as it should.
func placedPod(pod *corev1.Pod) { pod.Spec.SchedulerName = v1alpha1.DefaultSchedulerName }

func newBinding(node string, annotations map[string]string) *corev1.Binding {
	return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Annotations: annotations}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
}

// boundPod creates a pod and binds it to a node, as a scheduler would.
func boundPod(t *testing.T, name, node string, edit func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	pod := newPod(name, edit)
	create(t, pod)
	if err := env.admin.SubResource("binding").Create(t.Context(), pod, newBinding(node, nil)); err != nil {
		t.Fatalf("binding pod %s: %v", name, err)
	}
	if err := env.admin.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func newBlock(network *v1alpha1.Network, cidr, node string) *v1alpha1.IPBlock {
	name := network.Name + "." + strings.NewReplacer(":", "-", "/", "-").Replace(cidr)
	return &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.IPBlockSpec{
			Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(cidr), NodeName: node, NodeUID: "n",
		},
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// definitionKind is the CRD of NPWG's specification, as far as netplane reads it.
const definitionKind = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: network-attachment-definitions.k8s.cni.cncf.io
spec:
  group: k8s.cni.cncf.io
  scope: Namespaced
  names: {plural: network-attachment-definitions, singular: network-attachment-definition, kind: NetworkAttachmentDefinition}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              config: {type: string}
`

// sandboxFailed is kubelet's reason for an event about an ADD that failed.
const sandboxFailed = "FailedCreatePodSandBox"

// installDefinitions has the cluster know NetworkAttachmentDefinitions until the
// end of the test, or longer if it knew them before.
func installDefinitions(t *testing.T) {
	t.Helper()
	var kind unstructured.Unstructured
	if err := yaml.Unmarshal([]byte(definitionKind), &kind); err != nil {
		t.Fatal(err)
	}
	err := env.client.Create(t.Context(), &kind)
	if apierrors.IsAlreadyExists(err) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.client.Delete(context.WithoutCancel(t.Context()), &kind); err != nil {
			t.Errorf("removing the kind NetworkAttachmentDefinition: %v", err)
		}
	})
}

// define makes a NetworkAttachmentDefinition; one without config names the
// node's own configuration.
func define(t *testing.T, ns, name, config string) {
	t.Helper()
	definition := unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"config": config}}}
	definition.SetAPIVersion("k8s.cni.cncf.io/v1")
	definition.SetKind("NetworkAttachmentDefinition")
	definition.SetNamespace(ns)
	definition.SetName(name)
	// A kind is served a moment after it was made.
	eventually(t, 15*time.Second, "NetworkAttachmentDefinition "+name+" to be accepted", func() error {
		err := env.client.Create(t.Context(), &definition)
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// selecting has a pod ask by one of NPWG's annotations.
func selecting(annotation, value string) podOption {
	return func(p *corev1.Pod) {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[annotation] = value
	}
}

// onDisk has nodes have a CNI configuration beside that which netplane wraps.
func onDisk(t *testing.T, file string, configs map[string]string) {
	t.Helper()
	path := "/etc/cni/net.d/" + file
	for node, config := range configs {
		if _, err := onNode(t.Context(), node, config, "sh", "-c", "cat >"+path); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "rm", "-f", path); err != nil {
				t.Error(err)
			}
		})
	}
}

// agentFlags returns what gives all agents flags beside those that they have,
// in the place of what it gave them before. At the end of the test they have
// their own again.
func agentFlags(t *testing.T) (set func(flags ...string)) {
	t.Helper()
	var before appsv1.DaemonSetSpec
	restart := func(ctx context.Context, flags ...string) {
		changeAgents(ctx, t, func(spec *appsv1.DaemonSetSpec) {
			if before.Selector == nil {
				before = *spec.DeepCopy()
			}
			// All at once: the tests wait for them.
			spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromString("100%"))}
			agent := &spec.Template.Spec.Containers[0]
			agent.Args = append(slices.Clone(before.Template.Spec.Containers[0].Args), flags...)
		})
		eventually(t, 120*time.Second, fmt.Sprintf("the agents to run with %v", flags), func() error { return env.rolledOut(ctx) })
		for _, node := range workers() {
			awaitAgent(t, node)
		}
	}
	t.Cleanup(func() {
		if before.Selector == nil {
			return
		}
		ctx := context.WithoutCancel(t.Context())
		restart(ctx)
		changeAgents(ctx, t, func(spec *appsv1.DaemonSetSpec) { spec.UpdateStrategy = before.UpdateStrategy })
	})
	return func(flags ...string) {
		t.Helper()
		restart(t.Context(), flags...)
	}
}

// rolledOut says which agents are not of the DaemonSet's present template.
func (c *cluster) rolledOut(ctx context.Context) error {
	var ds appsv1.DaemonSet
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.AgentAppLabel}, &ds); err != nil {
		return err
	}
	all := ds.Status.DesiredNumberScheduled
	if ds.Status.ObservedGeneration != ds.Generation || ds.Status.UpdatedNumberScheduled != all || ds.Status.NumberReady != all {
		return fmt.Errorf("of %d agents %d are updated, %d ready", all, ds.Status.UpdatedNumberScheduled, ds.Status.NumberReady)
	}
	return nil
}

// attachedAs waits for a pod's network-status of one interface.
func attachedAs(t *testing.T, pod *corev1.Pod, ifname string) podnetworks.Attachment {
	t.Helper()
	var out podnetworks.Attachment
	eventually(t, 20*time.Second, "network-status of pod "+pod.Name, func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Annotations[v1alpha1.AnnotationNetworkStatus] == "" {
			return fmt.Errorf("there is none")
		}
		var ok bool
		if out, ok = attachments(t, pod)[ifname]; !ok {
			return fmt.Errorf("it has no %s: %s", ifname, pod.Annotations[v1alpha1.AnnotationNetworkStatus])
		}
		return nil
	})
	return out
}

// checkNothingDelegated waits until the pods of a namespace are gone, and holds
// nodes to have neither records of delegates nor addresses of host-local's for
// these networks.
func checkNothingDelegated(t *testing.T, ns string, nodes []string, networks ...string) {
	t.Helper()
	if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	awaitNoPods(t.Context(), t, ns)
	folders := "/var/lib/cni/netplane /var/lib/cni/flannel"
	for _, network := range networks {
		folders += " /var/lib/cni/networks/" + network
	}
	for _, node := range nodes {
		left := mustOnNode(t, node, "sh", "-c", "find "+folders+" -type f ! -name lock ! -name 'last_reserved_ip*' 2>/dev/null || true")
		if left != "" {
			t.Errorf("left on %s:\n%s", node, left)
		}
	}
}

// wire is a network on the physical network phy0, which the first two workers
// have on eth1.
const wire = `{"cniVersion":"1.0.0","name":"e2e-wire","plugins":[{"type":"macvlan","master":"eth1","mode":"bridge",
"capabilities":{"ips":true,"mac":true},
"ipam":{"type":"host-local","ranges":[[{"subnet":"10.61.0.0/24"}],[{"subnet":"fd00:10:61::/64"}]]}}]}`

// routed is a network between a node and its pods.
const routed = `{"cniVersion":"1.0.0","name":"%s","plugins":[{"type":"ptp","ipam":{"type":"host-local","subnet":"%s","routes":[{"dst":"%s"}]}}]}`

// TestPodsOfNetworkAttachmentDefinitions: pods from a cluster with Multus work as
// they do there, with plugins that the administrator allows.
func TestPodsOfNetworkAttachmentDefinitions(t *testing.T) {
	set := agentFlags(t)
	installDefinitions(t)
	other, ns := namespace(t), namespace(t)
	node, peer := env.node("worker"), env.node("worker2")
	onDisk(t, "90-e2e-nad.conflist", map[string]string{node: fmt.Sprintf(routed, "e2e-on-disk", "10.62.0.0/24", "192.0.2.0/24")})
	define(t, ns, "wire", wire)
	define(t, ns, "first", fmt.Sprintf(routed, "e2e-first", "10.64.0.0/24", "0.0.0.0/0"))
	define(t, ns, "forbidden", `{"cniVersion":"1.0.0","type":"bridge","ipam":{"type":"host-local","subnet":"10.65.0.0/24"}}`)
	define(t, other, "e2e-on-disk", "")

	early := createPod(t, newPod(ns, "early", "", selecting(v1alpha1.AnnotationNPWGNetworks, "wire"), on(node)))
	awaitEvent(t, early, sandboxFailed, ns+"/wire", "allow these no plugin", "--nad-plugin-types")
	allowed := []string{"--nad-plugin-types=macvlan,ptp,host-local", "--pod-cidr=10.244.0.0/16"}
	set(allowed...)
	awaitRunning(t, early, 90*time.Second)

	t.Run("across nodes, with addresses, MAC and default route of their own", func(t *testing.T) { definedAcrossNodes(t, ns, node, peer) })
	t.Run("of another namespace, by the node's own configuration", func(t *testing.T) {
		pod := run(t, newPod(ns, "disk", "", selecting(v1alpha1.AnnotationNPWGNetworks, other+"/e2e-on-disk@disk0"), on(node)))
		got := attachedAs(t, pod, "disk0")
		if got.Name != other+"/e2e-on-disk" || len(got.IPs) != 1 || !strings.HasPrefix(got.IPs[0], "10.62.0.") {
			t.Fatalf("got %+v", got)
		}
		mustFetch(t, node, got.IPs[0], "disk")
	})
	t.Run("beside Networks, which can be changed", func(t *testing.T) {
		pod := run(t, newPod(ns, "both", "data@eth1", selecting(v1alpha1.AnnotationNPWGNetworks, "wire"), on(node)))
		awaitInterfaces(t, pod, 20*time.Second, "eth0", "eth1", "net1")
		if got := pod.Annotations[v1alpha1.AnnotationAttached]; got != "data=1" {
			t.Errorf("the pod counts for %q", got)
		}
		change(t, pod, "management@eth2")
		awaitInterfaces(t, pod, 20*time.Second, "eth0", "eth2", "net1")
		change(t, pod, "management@net1")
		awaitEvent(t, pod, v1alpha1.EventHotPlugRefused, "interface net1", ns+"/wire")
		awaitInterfaces(t, pod, 20*time.Second, "eth0", "net1")
	})
	t.Run("in the place of the cluster's network", func(t *testing.T) {
		pod := run(t, newPod(ns, "first", "", selecting(v1alpha1.AnnotationMultusDefaultNetwork, ns+"/first"), on(node)))
		got := attachedAs(t, pod, "eth0")
		if got.Name != ns+"/first" || !got.Default || len(got.IPs) != 1 || pod.Status.PodIP != got.IPs[0] || !strings.HasPrefix(pod.Status.PodIP, "10.64.0.") {
			t.Errorf("the pod's IP is %s, its status %+v", pod.Status.PodIP, got)
		}
		mustFetch(t, node, pod.Status.PodIP, "first")
	})
	t.Run("of a plugin that is not allowed", func(t *testing.T) {
		pod := createPod(t, newPod(ns, "forbidden", "", selecting(v1alpha1.AnnotationNPWGNetworks, "forbidden"), on(node)))
		awaitEvent(t, pod, sandboxFailed, ns+"/forbidden", `plugin type "bridge" is not among those`)
	})
	t.Run("of another namespace, where these are isolated", func(t *testing.T) {
		set(append(allowed, "--nad-namespace-isolation")...)
		pod := createPod(t, newPod(ns, "isolated", "", selecting(v1alpha1.AnnotationNPWGNetworks, other+"/e2e-on-disk"), on(node)))
		awaitEvent(t, pod, sandboxFailed, other+"/e2e-on-disk", "of another namespace than the pod")
		run(t, newPod(ns, "own", "", selecting(v1alpha1.AnnotationNPWGNetworks, "wire"), on(node)))
	})
	checkNothingDelegated(t, ns, []string{node, peer}, "e2e-wire", "e2e-on-disk", "e2e-first")
}

// definedAcrossNodes has two pods talk over a definition's network. host-local
// knows of no other node: the pods ask for addresses far from each other's.
func definedAcrossNodes(t *testing.T, ns, node, peer string) {
	const mac = "c2:b0:57:49:47:f1"
	left := run(t, newPod(ns, "left", "", on(node), selecting(v1alpha1.AnnotationNPWGNetworks,
		`[{"name":"wire","interface":"data0","ips":["10.61.0.11/24","fd00:10:61::11/64"],"mac":"`+mac+`"}]`)))
	right := run(t, newPod(ns, "right", "", on(peer), selecting(v1alpha1.AnnotationNPWGNetworks,
		`[{"name":"wire","ips":["10.61.0.99/24","fd00:10:61::99/64"],"default-route":["10.61.0.11"]}]`)))
	status := attachedAs(t, left, "data0")
	if status.Name != ns+"/wire" || status.MAC != mac || !slices.Equal(sorted(status.IPs), []string{"10.61.0.11", "fd00:10:61::11"}) || status.Default {
		t.Errorf("got %+v", status)
	}
	inside := enter(t, left).links(t)["data0"]
	if inside.Address != mac || !slices.Equal(inside.global(), []string{"10.61.0.11/24", "fd00:10:61::11/64"}) {
		t.Errorf("inside is %+v", inside)
	}
	a, b := enter(t, left), enter(t, right)
	for _, address := range []string{"10.61.0.99", "fd00:10:61::99"} {
		a.mustReach(t, address, webPort, "right")
	}
	for _, address := range []string{"10.61.0.11", "fd00:10:61::11", left.Status.PodIP} {
		b.mustReach(t, address, webPort, "left")
	}
	if got := attachedAs(t, right, "net1").Gateway; !slices.Equal(got, []string{"10.61.0.11"}) {
		t.Errorf("network-status has the gateways %v", got)
	}
	for to, nic := range map[string]string{"198.51.100.1": "dev net1", "10.96.0.1": "dev eth0", left.Status.PodIP: "dev eth0"} {
		if out, err := b.sh(t, "ip route get "+to); err != nil || !strings.Contains(out, nic) {
			t.Errorf("packets to %s go by %q (%v), want %s", to, out, err, nic)
		}
	}
}

// mustFetch gets a pod's page from its node.
func mustFetch(t *testing.T, node, address, want string) {
	t.Helper()
	eventually(t, 20*time.Second, "node "+node+" to reach "+address, func() error {
		out, err := onNode(t.Context(), node, "", "curl", "-sS", "-m", "3", fmt.Sprintf("http://%s:%d/", address, webPort))
		if err == nil && strings.TrimSpace(out) != want {
			err = fmt.Errorf("it answers %q, want %q", out, want)
		}
		return err
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestStickyAddressesStay: the pods of a StatefulSet keep their addresses when
// they are rolled, and when one is deleted by force.
func TestStickyAddressesStay(t *testing.T) {
	network := newNetwork(t, "e2e-fixed", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Subnet: "10.31.0.0/25", StaticRange: "10.31.0.96/27", BlockSize: 8,
	})
	ns := namespace(t)
	awaitNetwork(t, network.Name, "True", v1alpha1.ReasonReady)
	const replicas = 2
	template := newPod(ns, "", "- {name: "+network.Name+", ifname: net1, sticky: true}", labelled("set", "db"))
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To[int32](replicas), ServiceName: "db", PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"set": "db"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"set": "db"}, Annotations: template.Annotations}, Spec: template.Spec,
			},
		},
	}
	if err := env.client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	first := awaitReplicas(t, set, map[string]types.UID{})
	addresses := map[string]string{}
	for name, pod := range first {
		addresses[name] = addressIn(t, pod, network.Name, false)
		if got, err := netip.ParseAddr(addresses[name]); err != nil || !netip.MustParsePrefix("10.31.0.96/27").Contains(got) {
			t.Errorf("%s has %s, which is not of the static range", name, addresses[name])
		}
	}
	checkClaims(t, ns, network.Name, addresses)
	same := func(what string, pods map[string]*corev1.Pod) {
		t.Helper()
		for name, pod := range pods {
			if got := addressIn(t, pod, network.Name, false); got != addresses[name] {
				t.Errorf("%s: %s has %s, want %s as before", what, name, got, addresses[name])
			}
			if inside := enter(t, pod).links(t)["net1"]; !strings.Contains(strings.Join(inside.global(), " "), addresses[name]+"/") {
				t.Errorf("%s: inside %s are the addresses %v, want %s", what, name, inside.global(), addresses[name])
			}
		}
	}
	same("at first", first)

	patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"template":{"metadata":{"labels":{"rolled":"yes"}}}}}`))
	if err := env.client.Patch(t.Context(), set, patch); err != nil {
		t.Fatal(err)
	}
	rolled := awaitReplicas(t, set, uids(first))
	same("rolled", rolled)

	victim := rolled["db-0"]
	if err := env.client.Delete(t.Context(), victim, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	same("after one was deleted by force", awaitReplicas(t, set, map[string]types.UID{"db-0": victim.UID}))
	checkClaims(t, ns, network.Name, addresses)
}

func uids(pods map[string]*corev1.Pod) map[string]types.UID {
	out := map[string]types.UID{}
	for name, pod := range pods {
		out[name] = pod.UID
	}
	return out
}

// awaitReplicas waits until all pods of the set run, none of them one of former.
// A pod that was deleted by force waits a minute for word of the former one.
func awaitReplicas(t *testing.T, set *appsv1.StatefulSet, former map[string]types.UID) map[string]*corev1.Pod {
	t.Helper()
	out := map[string]*corev1.Pod{}
	eventually(t, 3*time.Minute, "the pods of StatefulSet "+set.Name+" to run", func() error {
		var pods corev1.PodList
		if err := env.client.List(t.Context(), &pods, client.InNamespace(set.Namespace), client.MatchingLabels{"set": set.Name}); err != nil {
			return err
		}
		clear(out)
		for i := range pods.Items {
			p := &pods.Items[i]
			if p.UID == former[p.Name] || p.DeletionTimestamp != nil || !podReady(p) || p.Annotations[v1alpha1.AnnotationNetworkStatus] == "" {
				return fmt.Errorf("%s: %s %s", p.Name, p.Status.Phase, waitingReason(p))
			}
			out[p.Name] = p
		}
		if len(out) != int(*set.Spec.Replicas) {
			return fmt.Errorf("there are %d", len(out))
		}
		return nil
	})
	return out
}

// checkClaims: kubectl shows whose an address is.
func checkClaims(t *testing.T, ns, network string, addresses map[string]string) {
	t.Helper()
	table, err := kubectl(t.Context(), "get", "ipclaims")
	if err != nil {
		t.Fatal(err)
	}
	for pod, address := range addresses {
		row := ""
		for line := range strings.Lines(table) {
			if strings.HasPrefix(line, network+"."+address+" ") {
				row = strings.Join(strings.Fields(line), " ")
			}
		}
		want := fmt.Sprintf("%s.%s %s %s %s %s True Bound %s ", network, address, network, address, ns, pod, pod)
		if !strings.HasPrefix(row, want) {
			t.Errorf("kubectl get ipclaims has %q, want %q and so on:\n%s", row, want, table)
		}
	}
}

// outside runs a host that is no part of the cluster on a physical network, with
// these addresses.
func outside(t *testing.T, physical string, addresses ...string) {
	t.Helper()
	network := env.name + "-" + strings.Replace(physical, "phy-net", "phy", 1)
	if !strings.HasPrefix(env.name, "netplane") {
		network = "netplane-" + network
	}
	script := "for a in " + strings.Join(addresses, " ") + "; do ip address add $a/32 dev eth0 || exit 1; done; echo up; exec sleep 600"
	name := "netplane-e2e-outside"
	remove := func(ctx context.Context) { _ = exec.CommandContext(ctx, "docker", "rm", "--force", name).Run() } // nothing to remove is no failure
	remove(t.Context())
	t.Cleanup(func() { remove(context.WithoutCancel(t.Context())) })
	out, err := exec.CommandContext(t.Context(), "docker", "run", "--detach", "--name", name, "--network", network, "--cap-add", "NET_ADMIN",
		"netplane/testbox:dev", "sh", "-c", script).CombinedOutput() // #nosec G204 -- the tests' own commands
	if err != nil {
		t.Fatalf("starting a host outside the cluster: %v: %s", err, out)
	}
	eventually(t, 30*time.Second, "the host outside the cluster to be up", func() error {
		out, err := exec.CommandContext(t.Context(), "docker", "logs", name).CombinedOutput() // #nosec G204 -- see above
		if err == nil && !strings.Contains(string(out), "up") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
}

// TestAddressOfAForeignHostIsNotUsed: on a network that probes, a pod gets none
// of the addresses that a host outside the cluster has, and an event says so.
func TestAddressOfAForeignHostIsNotUsed(t *testing.T) {
	network := newNetwork(t, "e2e-probed", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginBridge, Subnet: "10.32.0.0/26", BlockSize: 16, ConflictDetection: v1alpha1.ConflictDetectionProbe,
	})
	ns := namespace(t)
	_, plan := planOf(t, network.Name)
	// The first address of each block: whichever block the node claims, the pod
	// would get one of them.
	taken := map[string]bool{}
	for block := range plan.Candidates(env.node("worker")) {
		for address := range plan.PodAddresses(block) {
			taken[address.String()] = true
			break
		}
	}
	outside(t, physData, keys(taken)...)
	awaitNetwork(t, network.Name, "True", v1alpha1.ReasonReady)
	pod := run(t, newPod(ns, "probes", network.Name, on(env.node("worker"))))
	checkAttached(t, pod, map[string]string{"net1": network.Name})
	if got := addressIn(t, pod, network.Name, false); taken[got] {
		t.Errorf("the pod has %s, which a host outside the cluster has", got)
	}
	eventually(t, 20*time.Second, "an event AddressTaken", func() error {
		var events corev1.EventList
		if err := env.client.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
			return err
		}
		for i := range events.Items {
			e := &events.Items[i]
			if e.InvolvedObject.Name != pod.Name || e.Reason != v1alpha1.EventAddressTaken {
				continue
			}
			for address := range taken {
				if strings.Contains(e.Message, address) {
					return nil
				}
			}
			return fmt.Errorf("it names none of %v: %s", keys(taken), e.Message)
		}
		return fmt.Errorf("there is none")
	})
}

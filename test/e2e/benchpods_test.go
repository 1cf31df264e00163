// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/figures"
)

const (
	// benchNetwork has IPv4 alone; netData, the other one, has both families.
	benchNetwork = "bench-pods"
	// benchPatience bounds the start of a Deployment, and its end.
	benchPatience = 15 * time.Minute
	// settled is how long after the end of the last pod nothing may be left.
	settled = 2 * time.Minute
	// counted is how long a Network's counters may tell of an earlier state.
	counted = 35 * time.Second
	// quiet is how long nodes may still be busy with the last pods' end: kubelet removes
	// containers, and the kernel namespaces, when the API knows the pods no more.
	quiet = 30 * time.Second
)

// BenchmarkPods compares how long a Deployment takes to be ready with two
// networks and without, on the same nodes, and looks for what its pods left.
func BenchmarkPods(b *testing.B) {
	replicas, rounds := figures.Setting(b, "REPLICAS", 150), figures.Setting(b, "ROUNDS", 3)
	newNetwork(b, benchNetwork, v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: v1alpha1.PluginMacvlan, Subnet: "10.60.0.0/16"})
	awaitNetwork(b, benchNetwork, metav1.ConditionTrue, v1alpha1.ReasonReady)
	ns := namespace(b)
	time.Sleep(counted)
	before := takeInventory(b, ns)
	// The first Deployments of a cluster take longer, or shorter, than those that follow.
	for _, networks := range []string{"", benchNetwork + "," + netData} {
		first := deploy(b, ns, networks, int32(replicas))
		figures.Say(b, "pods: not counted: the first %d pods on networks %q were ready after %.1fs", replicas, networks, first.ready.Seconds())
	}
	var ratios []float64
	for round := range rounds {
		took := map[string]course{}
		order := []string{"", benchNetwork + "," + netData}
		if round%2 == 1 { // neither is always the first
			order[0], order[1] = order[1], order[0]
		}
		for _, networks := range order {
			took[networks] = deploy(b, ns, networks, int32(replicas))
		}
		with, without := took[benchNetwork+","+netData], took[""]
		figures.Say(b, "pods: round %d: %d pods ready after %.1fs with networks, %.1fs without", round+1, replicas, with.ready.Seconds(), without.ready.Seconds())
		figures.Say(b, "pods: round %d: with networks %s; without %s", round+1, with.steps, without.steps)
		ratios = append(ratios, with.ready.Seconds()/without.ready.Seconds())
	}
	time.Sleep(settled)
	after := takeInventory(b, ns)
	figures.Say(b, "pods: before %+v; %s after the last pod %+v", before, settled, after)
	figures.Figure(b, "pods", "ratio/ready", figures.Median(ratios))
	figures.Figure(b, "pods", "left-over", float64(after.beyond(before)))
}

// course is how the start of a Deployment went: how long until all pods were
// ready, and where the pods were meanwhile.
type course struct {
	ready time.Duration
	steps string
}

// stepsOf says how long pods took, on average, from their creation to each of
// the conditions that tell how far a pod is. Those have whole seconds, so that
// only the average of many says something.
func stepsOf(b *testing.B, ns string) string {
	b.Helper()
	var pods corev1.PodList
	if err := env.client.List(b.Context(), &pods, client.InNamespace(ns)); err != nil {
		b.Fatal(err)
	}
	var out []string
	for _, step := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodReadyToStartContainers, corev1.PodReady} {
		var sum time.Duration
		count := 0
		for i := range pods.Items {
			for _, c := range pods.Items[i].Status.Conditions {
				if c.Type == step && c.Status == corev1.ConditionTrue {
					sum += c.LastTransitionTime.Sub(pods.Items[i].CreationTimestamp.Time)
					count++
				}
			}
		}
		out = append(out, fmt.Sprintf("%s after %.1fs", step, sum.Seconds()/float64(max(count, 1))))
	}
	return strings.Join(out, ", ")
}

// deploy tells how the start of a Deployment went, from its creation on. It is
// gone, with all pods, when deploy returns.
func deploy(b *testing.B, ns, networks string, replicas int32) course {
	b.Helper()
	pod := newPod(ns, "bench", networks)
	pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](0)
	// The nodes that back both networks; the others would be a head start.
	pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{
				Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{env.node("worker"), env.node("worker3")},
			}},
		}}},
	}}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "bench"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec},
		},
	}
	if err := env.client.Create(b.Context(), deployment); err != nil {
		b.Fatal(err)
	}
	started := time.Now()
	eventually(b, benchPatience, "the Deployment to be ready", func() error {
		if err := env.client.Get(b.Context(), client.ObjectKeyFromObject(deployment), deployment); err != nil {
			return err
		}
		if deployment.Status.ReadyReplicas < replicas {
			return fmt.Errorf("%d of %d pods are ready", deployment.Status.ReadyReplicas, replicas)
		}
		return nil
	})
	took := course{ready: time.Since(started)}
	took.steps = stepsOf(b, ns)
	if err := env.client.Delete(b.Context(), deployment, client.PropagationPolicy(metav1.DeletePropagationForeground)); err != nil {
		b.Fatal(err)
	}
	eventually(b, benchPatience, "the Deployment to be gone", func() error {
		err := env.client.Get(b.Context(), client.ObjectKeyFromObject(deployment), deployment)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil {
			return fmt.Errorf("%d pods are left", deployment.Status.Replicas)
		}
		return nil
	})
	awaitNoPods(b.Context(), b, ns)
	time.Sleep(quiet)
	return took
}

// inventory is what pods may leave behind, on all workers.
type inventory struct {
	// held are addresses without a living pod, used those that the Networks count.
	held, used int64
	// interfaces are host's ends of veths, journal the leases of the namespace.
	interfaces, journal int
}

// beyond sums up what there is more of than before.
func (i inventory) beyond(before inventory) int64 {
	return max(0, i.held-before.held) + max(0, i.used-before.used) + int64(max(0, i.interfaces-before.interfaces)+max(0, i.journal-before.journal))
}

func takeInventory(b *testing.B, ns string) inventory {
	b.Helper()
	var out inventory
	for _, node := range workers() {
		nn, err := getNodeNetwork(b.Context(), node)
		if err != nil {
			b.Fatal(err)
		}
		for _, held := range nn.Status.Held {
			out.held += int64(held.Count)
		}
		out.interfaces += len(nodeLinks(b, node))
		out.journal += len(journalLeases(b, node, ns))
	}
	for _, name := range []string{benchNetwork, netData} {
		var network v1alpha1.Network
		if err := env.client.Get(b.Context(), client.ObjectKey{Name: name}, &network); err != nil {
			b.Fatal(err)
		}
		out.used += network.Status.Addresses.Used
	}
	return out
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestForceDeletedPodsKeepTheirAddressesWhileTheyLive: the objects are gone at
// once, the containers live for as long as kubelet takes to end them. As long as
// they do, their addresses count as held, and the pods that take their names wait.
func TestForceDeletedPodsKeepTheirAddressesWhileTheyLive(t *testing.T) {
	p := newPool(t)
	pods := p.fill(t, "p")
	// Kubelet ends containers a second after such a deletion; a slow machine needs
	// longer to delete all the pods and to tell of it.
	var resume []func()
	for _, node := range nodesOf(pods) {
		resume = append(resume, freeze(t, node, "kubelet"))
	}
	for _, pod := range pods {
		if err := env.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 20*time.Second, "the addresses of the pods that are gone to be held", func() error {
		if held := heldNow(t, poolNetwork); held != p.capacity {
			return fmt.Errorf("%d are held, want %d", held, p.capacity)
		}
		return nil
	})
	heirs := p.create(t, "p", p.capacity)
	for _, heir := range heirs {
		awaitPending(t, heir, fmt.Sprintf("node(s) had no free address in network %q", poolNetwork))
	}
	for _, do := range resume {
		do()
	}
	p.await(t, heirs)
	p.checkFull(t)
	p.checkReclaimed(t)
}

// nodesOf are the nodes on which pods run, each once.
func nodesOf(pods []*corev1.Pod) []string {
	var out []string
	for _, pod := range pods {
		out = append(out, pod.Spec.NodeName)
	}
	return slices.Compact(sorted(out))
}

// heldNow counts a Network's held addresses on all nodes.
func heldNow(t *testing.T, network string) int {
	t.Helper()
	var list v1alpha1.NodeNetworkList
	if err := env.client.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	count := 0
	for i := range list.Items {
		for _, held := range list.Items[i].Status.Held {
			if held.Network == network {
				count += int(held.Count)
			}
		}
	}
	return count
}

// TestKilledSandboxes: kubelet makes the sandboxes anew for the same pods,
// which get interfaces again though the pool is full.
func TestKilledSandboxes(t *testing.T) {
	p := newPool(t)
	node, there, elsewhere := onNodeOf(p.fill(t, "p"))
	before := sandboxes(t, node, p.ns)
	for _, pod := range there {
		mustOnNode(t, node, "ctr", "--namespace=k8s.io", "tasks", "kill", "--signal", "SIGKILL", before[pod.Name].ContainerID)
	}
	for _, pod := range there {
		awaitAnew(t, pod)
	}
	after := sandboxes(t, node, p.ns)
	for name, old := range before {
		if after[name].ContainerID == old.ContainerID || after[name].NetNS == old.NetNS {
			t.Errorf("pod %s is in its old sandbox %s, %s", name, old.ContainerID, old.NetNS)
		}
	}
	for _, pod := range elsewhere {
		checkUndisturbed(t, pod)
	}
	p.checkFull(t)
	p.checkReclaimed(t)
}

// template is newPod as controllers want it.
func (p *pool) template(name, networks string) corev1.PodTemplateSpec {
	pod := newPod(p.ns, name, networks)
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec,
	}
}

// rollTemplate makes a controller replace its pods.
func rollTemplate(t *testing.T, object client.Object, round int) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"e2e/round":"%d"}}}}}`, round)
	if err := env.client.Patch(t.Context(), object, merge(patch)); err != nil {
		t.Fatal(err)
	}
}

// removeController ends what a test made before its pods go, or it would make
// more of them.
func removeController(t *testing.T, object client.Object) {
	t.Helper()
	err := env.client.Delete(context.WithoutCancel(t.Context()), object, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if err != nil {
		t.Errorf("removing %s: %v", object.GetName(), err)
	}
}

// podsOf are those with newPod's label, that are not on their way out.
func podsOf(t *testing.T, ns string, names ...string) []*corev1.Pod {
	t.Helper()
	var out []*corev1.Pod
	for _, name := range names {
		var list corev1.PodList
		if err := env.client.List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{"pod": name}); err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			if list.Items[i].DeletionTimestamp == nil {
				out = append(out, &list.Items[i])
			}
		}
	}
	return out
}

// TestRolledStatefulSet: with every other address taken, each replica's
// successor gets the address that is given back.
func TestRolledStatefulSet(t *testing.T) {
	p := newPool(t)
	const replicas = 4
	p.await(t, p.create(t, "other", p.capacity-replicas))
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.ns, Name: "set"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To[int32](replicas), ServiceName: "set", PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"pod": "set"}},
			Template: p.template("set", p.annotation(0)),
		},
	}
	if err := env.client.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	settled := func(what string) {
		t.Helper()
		eventually(t, 120*time.Second, what, func() error {
			if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(set), set); err != nil {
				return err
			}
			s := set.Status
			if s.ObservedGeneration != set.Generation || s.ReadyReplicas != replicas || s.UpdatedReplicas != replicas || s.CurrentRevision != s.UpdateRevision {
				return fmt.Errorf("its status is %+v", s)
			}
			return nil
		})
	}
	settled("the StatefulSet to run")
	first := podsOf(t, p.ns, "set")
	p.await(t, first)
	p.checkFull(t)

	rollTemplate(t, set, 1)
	settled("the StatefulSet to be rolled")
	second := podsOf(t, p.ns, "set")
	p.await(t, second)
	if len(second) != replicas {
		t.Errorf("it has %d pods, want %d", len(second), replicas)
	}
	for _, pod := range second {
		for _, old := range first {
			if pod.UID == old.UID {
				t.Errorf("pod %s was not replaced", pod.Name)
			}
		}
	}
	p.checkFull(t)
	removeController(t, set)
	p.checkReclaimed(t)
}

// TestCompletedJob: the pods of a finished Job stay as objects; their addresses
// are free for as many pods.
func TestCompletedJob(t *testing.T) {
	p := newPool(t)
	template := p.template("job", p.annotation(0))
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	template.Spec.Containers[0].Command = []string{"sh", "-c", "ip address show dev eth0 | grep 'inet 10.10.' && ip address show dev eth1 | grep 'inet 10.35.0.'"}
	count := int32(p.capacity) //nolint:gosec // eight
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.ns, Name: "job"},
		Spec: batchv1.JobSpec{
			Completions: &count, Parallelism: &count, Template: template,
			// A container that the runtime could not start may be tried again, one that missed its interfaces not.
			PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
				Action:      batchv1.PodFailurePolicyActionFailJob,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{1}},
			}}},
		},
	}
	if err := env.client.Create(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	eventually(t, 120*time.Second, "the Job to complete", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(job), job); err != nil {
			return err
		}
		for _, c := range job.Status.Conditions {
			if c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue {
				t.Fatalf("it failed: %s: %s", c.Reason, c.Message)
			}
		}
		if job.Status.Succeeded != count {
			return fmt.Errorf("its status is %+v", job.Status)
		}
		return nil
	})
	p.fill(t, "next")
	if left := podsOf(t, p.ns, "job"); len(left) < p.capacity {
		t.Errorf("%d pods of the Job are left, want at least %d: the test proves nothing", len(left), p.capacity)
	}
	removeController(t, job)
	p.checkReclaimed(t)
}

// TestRolledDeploymentsOfAFullPool: two Deployments that need every address are
// rolled at once. A surge pod finds none and waits, without holding up the roll.
func TestRolledDeploymentsOfAFullPool(t *testing.T) {
	p := newPool(t)
	replicas := int32(p.capacity / 2) //nolint:gosec // four
	var both []*appsv1.Deployment
	for i, name := range []string{"left", "right"} {
		d := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.ns, Name: name},
			Spec: appsv1.DeploymentSpec{
				Replicas: &replicas, Template: p.template(name, p.annotation(i)),
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"pod": name}},
			},
		}
		if err := env.client.Create(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		both = append(both, d)
	}
	for round := range 2 {
		for _, d := range both {
			if round > 0 {
				rollTemplate(t, d, round)
			}
		}
		for _, d := range both {
			awaitRolled(t, d, replicas)
		}
		p.await(t, podsOf(t, p.ns, "left", "right"))
		p.checkFull(t)
	}
	for _, d := range both {
		removeController(t, d)
	}
	p.checkReclaimed(t)
}

func awaitRolled(t *testing.T, d *appsv1.Deployment, replicas int32) {
	t.Helper()
	eventually(t, 120*time.Second, "Deployment "+d.Name+" to be rolled", func() error {
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(d), d); err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration != d.Generation || s.Replicas != replicas || s.UpdatedReplicas != replicas || s.AvailableReplicas != replicas {
			return fmt.Errorf("its status is %+v", s)
		}
		return nil
	})
}

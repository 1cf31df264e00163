// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestRebootedNode: the addresses of what ran on the node are free again with
// its memory, its blocks stay its own, and its pods come back with interfaces.
func TestRebootedNode(t *testing.T) {
	p := newPool(t)
	node, there, elsewhere := onNodeOf(p.fill(t, "p"))
	blocks := blockHolders(t, poolNetwork)
	reboot(t, node)
	for _, pod := range there {
		awaitAnew(t, pod)
	}
	awaitAgent(t, node)
	for _, pod := range elsewhere {
		checkUndisturbed(t, pod)
	}
	if now := blockHolders(t, poolNetwork); !slices.Equal(now, blocks) {
		t.Errorf("the blocks are %v, were %v", now, blocks)
	}
	p.checkFull(t)
	awaitParts(t)
	p.checkReclaimed(t)
}

// reboot cuts a worker's power; its cards come back with it.
func reboot(t *testing.T, node string) {
	t.Helper()
	script := filepath.Join("..", "..", "hack", "cluster", "reboot.sh")
	cmd := exec.CommandContext(t.Context(), script, strings.TrimPrefix(node, env.name+"-"), env.name) // #nosec G204 -- a script of this repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("rebooting %s: %v\n%s", node, err, out)
	}
}

// blockHolders are a Network's blocks, each with its node.
func blockHolders(t *testing.T, network string) []string {
	t.Helper()
	var list v1alpha1.IPBlockList
	if err := env.client.List(t.Context(), &list, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network}); err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := range list.Items {
		out = append(out, string(list.Items[i].Spec.CIDR)+" "+list.Items[i].Spec.NodeName)
	}
	slices.Sort(out)
	return out
}

// awaitParts waits until netplane's parts are all ready.
func awaitParts(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	eventually(t, 120*time.Second, "netplane's parts to be ready", func() error { return env.checkParts(ctx) })
}

// TestAgentDownDuringDEL: the pods go without it, their DELs wait for it, and
// it frees their addresses when it is back.
func TestAgentDownDuringDEL(t *testing.T) {
	p := newPool(t)
	node, there, elsewhere := onNodeOf(p.fill(t, "p"))
	start := stopAgent(t, node)
	for _, pod := range there {
		if err := env.client.Delete(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 60*time.Second, "the pods to go", func() error {
		if left := podsLeft(t, there); len(left) > 0 {
			return fmt.Errorf("there are %v", left)
		}
		return nil
	})
	if got := spooled(t, node); got != len(there) {
		t.Errorf("%d DELs wait for the agent, want %d", got, len(there))
	}
	if leases := journalLeases(t, node, p.ns); len(leases) < len(there) {
		t.Errorf("the journal has only %v: the test proves nothing", leases)
	}
	if addresses, err := poolAddresses(t.Context()); err != nil || len(addresses) != len(elsewhere) {
		t.Errorf("in use are %v (%v), want %d", addresses, err, len(elsewhere))
	}

	start()
	if got, leases := spooled(t, node), journalLeases(t, node, p.ns); got > 0 || len(leases) > 0 {
		t.Errorf("the agent is ready with %d DELs waiting, and the leases %v", got, leases)
	}
	p.await(t, p.create(t, "next", len(there)))
	p.checkFull(t)
	p.checkReclaimed(t)
}

// podsLeft are the names of those pods that the API server has.
func podsLeft(t *testing.T, pods []*corev1.Pod) []string {
	t.Helper()
	var out []string
	for _, pod := range pods {
		err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), &corev1.Pod{})
		if err == nil {
			out = append(out, pod.Name)
		} else if client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestAPIServerDownDuringADDAndDEL: an ADD that has begun and a DEL are done by
// the node alone; what they did is known when the API server is back.
func TestAPIServerDownDuringADDAndDEL(t *testing.T) {
	p := newPool(t)
	node := env.node("worker")
	stays := run(t, newPod(p.ns, "stays", p.annotation(0), on(node)))
	ends := run(t, newPod(p.ns, "ends", p.annotation(0), on(node), func(pod *corev1.Pod) { pod.Spec.RestartPolicy = corev1.RestartPolicyNever }))
	main := enter(t, ends)

	// The agent stands still from the moment that the pod is bound.
	resume := freeze(t, node, "netplane-agent")
	starts := createPod(t, newPod(p.ns, "starts", p.annotation(0), on(node)))
	eventually(t, 20*time.Second, "the ADD of a pod to begin", func() error {
		_, err := onNode(t.Context(), node, "", "pgrep", "-x", "netplane")
		return err
	})
	back := stopAPIServer(t)
	resume()
	mustOnNode(t, node, "kill", "-9", strconv.Itoa(main.pid))
	eventually(t, 60*time.Second, "the pod to get its addresses", func() error {
		record, ok := sandboxes(t, node, p.ns)[starts.Name]
		if !ok || record.State != "attached" {
			return fmt.Errorf("its sandbox is %+v", record)
		}
		return attachedInside(t, node, &record)
	})
	eventually(t, 60*time.Second, "the addresses of the pod that ended to be free", func() error {
		for _, lease := range journalLeases(t, node, p.ns) {
			if strings.HasPrefix(lease, ends.Name+" ") {
				return fmt.Errorf("the journal has the lease %s", lease)
			}
		}
		if record, ok := sandboxes(t, node, p.ns)[ends.Name]; ok {
			return fmt.Errorf("the agent has the sandbox %+v", record)
		}
		return nil
	})
	if askAPIServer(t.Context()) == nil {
		t.Error("the API server answers: the test proves nothing")
	}

	back()
	checkUndisturbed(t, stays)
	p.await(t, []*corev1.Pod{starts})
	if refused := sandboxFailures(t, p.ns, "starts"); len(refused) > 0 {
		t.Errorf("the ADD was done on a later attempt: %v", refused)
	}
	p.checkReclaimed(t)
}

// attachedInside wants every address of a sandbox inside its namespace.
func attachedInside(t *testing.T, node string, record *sandboxRecord) error {
	t.Helper()
	inside := parseLinks(t, mustOnNode(t, node, "nsenter", "--net="+record.NetNS, "ip", "-j", "addr"))
	for _, a := range record.Attachments {
		link := inside[a.Interface]
		have := strings.Join(link.global(), " ")
		for _, ip := range a.IPs {
			if !strings.Contains(" "+have, " "+ip+"/") {
				return fmt.Errorf("%s is not on %s, which has %s", ip, a.Interface, have)
			}
		}
	}
	return nil
}

// stopAPIServer ends it as a crash would, and kubelet beside it, which would
// bring it back at once. The function that it returns brings back both, and all
// that leads by a Lease; the end of the test does so too.
func stopAPIServer(t *testing.T) (start func()) {
	t.Helper()
	node := env.node("control-plane")
	started := false
	start = func() {
		if started {
			return
		}
		started = true
		ctx := context.WithoutCancel(t.Context())
		if _, err := onNode(ctx, node, "", "systemctl", "start", "kubelet"); err != nil {
			t.Errorf("starting kubelet: %v", err)
		}
		eventually(t, 120*time.Second, "the API server to be back", func() error { return askAPIServer(ctx) })
		since := time.Now()
		skipBackOff(ctx, t)
		awaitLeaders(ctx, t, since)
		awaitServiceAccounts(ctx, t)
		awaitParts(t)
	}
	mustOnNode(t, node, "systemctl", "stop", "kubelet")
	t.Cleanup(start)
	mustOnNode(t, node, "pkill", "-9", "-x", "kube-apiserver")
	eventually(t, 20*time.Second, "the API server to be down", func() error {
		if askAPIServer(t.Context()) == nil {
			return errors.New("it answers")
		}
		return nil
	})
	return start
}

// askAPIServer returns an error if it is not ready.
func askAPIServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := env.clientset.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

// skipBackOff replaces what ended because it could not renew its Lease: kubelet
// would start it again, but by now only after minutes if a test before this one
// ended it as well.
func skipBackOff(ctx context.Context, t *testing.T) {
	t.Helper()
	var list corev1.PodList
	if err := env.client.List(ctx, &list, client.InNamespace(v1alpha1.SystemNamespace)); err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		pod := &list.Items[i]
		if pod.Labels["app.kubernetes.io/name"] == v1alpha1.AgentAppLabel {
			continue
		}
		if err := client.IgnoreNotFound(env.client.Delete(ctx, pod)); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitLeaders waits until every leader has renewed its Lease.
func awaitLeaders(ctx context.Context, t *testing.T, since time.Time) {
	t.Helper()
	for name, namespace := range map[string]string{
		"kube-controller-manager": "kube-system", "kube-scheduler": "kube-system",
		"netplane-scheduler": v1alpha1.SystemNamespace, "netplane-controller": v1alpha1.SystemNamespace,
	} {
		eventually(t, 180*time.Second, "a leader of "+name, func() error {
			var lease coordinationv1.Lease
			if err := env.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &lease); err != nil {
				return err
			}
			if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(since) {
				return fmt.Errorf("the Lease was renewed at %s last", lease.Spec.RenewTime)
			}
			return nil
		})
	}
}

// awaitServiceAccounts waits until kube-controller-manager serves new
// namespaces again: it leads some time before it does, and without their
// service account they take no pods.
func awaitServiceAccounts(ctx context.Context, t *testing.T) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: map[string]string{"netplane.io/e2e": "true"}}}
	if err := env.client.Create(ctx, ns); err != nil {
		t.Fatal(err)
	}
	eventually(t, 180*time.Second, "a new namespace's service account", func() error {
		return env.client.Get(ctx, client.ObjectKey{Namespace: ns.Name, Name: "default"}, &corev1.ServiceAccount{})
	})
	if err := env.client.Delete(ctx, ns); err != nil {
		t.Error(err)
	}
}

// TestContainerdRestarted: once while pods start and once while they go. What
// ran goes on running, and nothing is lost between runtime and agent.
func TestContainerdRestarted(t *testing.T) {
	p := newPool(t)
	node := env.node("worker")
	half := p.capacity / 2
	before := p.create(t, "before", half)
	p.await(t, before)
	restart := func() {
		t.Helper()
		mustOnNode(t, node, "systemctl", "restart", "containerd")
	}
	during := p.create(t, "during", p.capacity-half)
	awaitADD(t, p.ns, during)
	restart()
	p.await(t, during)
	for _, pod := range before {
		checkUndisturbed(t, pod)
	}
	p.checkFull(t)

	if err := env.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(p.ns)); err != nil {
		t.Fatal(err)
	}
	restart()
	p.checkReclaimed(t)
}

// awaitADD waits until one of the pods is bound to a node, where kubelet is at
// its sandbox.
func awaitADD(t *testing.T, ns string, pods []*corev1.Pod) {
	t.Helper()
	eventually(t, 20*time.Second, "a pod to start", func() error {
		var list corev1.PodList
		if err := env.client.List(t.Context(), &list, client.InNamespace(ns)); err != nil {
			return err
		}
		for i := range list.Items {
			bound := list.Items[i].Spec.NodeName != ""
			if bound && slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.Name == list.Items[i].Name }) {
				return nil
			}
		}
		return errors.New("none is bound")
	})
}

// TestFullDisk: where libcni cannot keep its results, DEL works, and ADD fails
// and says why, and leaves nothing; once there is room the pods start.
func TestFullDisk(t *testing.T) {
	p := newPool(t)
	node := env.node("worker")
	var leaving []*corev1.Pod
	for i := range 2 {
		leaving = append(leaving, run(t, newPod(p.ns, fmt.Sprintf("leaving%d", i), p.annotation(i), on(node))))
	}
	disk := smallDisk(t, node, "/var/lib/cni")
	disk.fill(t)
	for _, pod := range leaving {
		if err := env.client.Delete(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	awaitNoPods(t.Context(), t, p.ns)
	if err := errors.Join(traces(t, node, p.ns), strayLinks(t, node)); err != nil {
		t.Errorf("the pods are gone, but %v", err)
	}

	disk.fill(t) // the results of those pods are gone, too
	waiting := p.create(t, "waiting", 2, on(node))
	for _, pod := range waiting {
		eventually(t, 60*time.Second, "pod "+pod.Name+" to be told why it does not start", func() error {
			for _, event := range sandboxFailures(t, p.ns, "no space left on device") {
				if strings.HasPrefix(event, pod.Name+": ") {
					return nil
				}
			}
			return fmt.Errorf("there are %v", sandboxFailures(t, p.ns, ""))
		})
	}
	// That is, between two of kubelet's attempts.
	eventually(t, 30*time.Second, "no address to be in use", func() error {
		got, err := poolAddresses(t.Context())
		return errors.Join(err, traces(t, node, p.ns), strayLinks(t, node), wantNone(got))
	})
	disk.free(t)
	p.await(t, waiting)
	p.checkReclaimed(t)
}

func wantNone(found []string) error {
	if len(found) > 0 {
		return fmt.Errorf("there are %v", found)
	}
	return nil
}

// disk lies over a folder of a node.
type disk struct{ node, folder string }

const filler = "/e2e-filler"

// smallDisk puts one under a folder with what is in it. The end of the test
// takes the disk away and keeps what is on it then.
func smallDisk(t *testing.T, node, folder string) disk {
	t.Helper()
	const under = "/run/e2e-under"
	// Private, or the disk would appear there as well.
	mustOnNode(t, node, "sh", "-e", "-c", fmt.Sprintf(`
		mkdir -p %[1]s %[2]s
		mount --bind %[2]s %[1]s
		mount --make-private %[1]s
		mount -t tmpfs -o size=256k e2e %[2]s
		cp -a %[1]s/. %[2]s/`, under, folder))
	t.Cleanup(func() {
		_, err := onNode(context.WithoutCancel(t.Context()), node, "", "sh", "-e", "-c", fmt.Sprintf(`
			rm -f %[2]s%[3]s
			find %[1]s -mindepth 1 -delete
			cp -a %[2]s/. %[1]s/
			umount %[2]s
			umount %[1]s
			rmdir %[1]s`, under, folder, filler))
		if err != nil {
			t.Errorf("restoring %s: %v", folder, err)
		}
	})
	return disk{node, folder}
}

// fill leaves not a byte.
func (d disk) fill(t *testing.T) {
	t.Helper()
	mustOnNode(t, d.node, "sh", "-c", "! dd if=/dev/zero bs=4k >>"+d.folder+filler)
}

// free makes room again.
func (d disk) free(t *testing.T) {
	t.Helper()
	mustOnNode(t, d.node, "rm", d.folder+filler)
}

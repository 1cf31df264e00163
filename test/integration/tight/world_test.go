// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package tight

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/test/integration/objects"
)

// patience bounds what must happen within seconds, on a machine that does much else.
const patience = 60 * time.Second

// world is one test's: a Network, the nodes that share it, and their agents.
type world struct {
	t       *testing.T
	network *v1alpha1.Network
	agents  map[string]*ipam.Manager // by node
	nodes   []string
}

// newWorld makes so many nodes that share a Network of blocks with 8 or, if it
// is larger than a /26, 16 addresses. All of it goes when the test ends.
func newWorld(t *testing.T, name, subnet string, nodes int) *world {
	t.Helper()
	w := &world{t: t, agents: map[string]*ipam.Manager{}}
	t.Cleanup(w.clear)
	w.create(&v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: "phy-" + name}})
	for i := range nodes {
		node := fmt.Sprintf("%s-%d", name, i)
		w.nodes = append(w.nodes, node)
		w.node(node, "phy-"+name)
	}
	w.network = &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-" + name, Plugin: v1alpha1.PluginMacvlan, Subnet: v1alpha1.CIDR(subnet)},
	}
	w.create(w.network)
	for _, node := range w.nodes {
		w.agents[node] = w.agent(node)
	}
	return w
}

// clear deletes what the test has made. The agents have ended by then.
func (w *world) clear() {
	ctx := context.Background()
	var blocks v1alpha1.IPBlockList
	w.must(api.List(ctx, &blocks))
	for i := range blocks.Items {
		blocks.Items[i].Finalizers = nil
		w.must(client.IgnoreNotFound(api.Update(ctx, &blocks.Items[i])), client.IgnoreNotFound(api.Delete(ctx, &blocks.Items[i])))
	}
	w.must(api.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace("default"), client.GracePeriodSeconds(0)),
		api.DeleteAllOf(ctx, &v1alpha1.Network{}), api.DeleteAllOf(ctx, &v1alpha1.NodeNetwork{}),
		api.DeleteAllOf(ctx, &v1alpha1.PhysicalNetwork{}), api.DeleteAllOf(ctx, &corev1.Node{}))
}

func (w *world) must(errs ...error) {
	w.t.Helper()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) create(object client.Object) {
	w.t.Helper()
	if err := api.Create(w.t.Context(), object); err != nil {
		w.t.Fatalf("creating %T %s: %v", object, object.GetName(), err)
	}
}

// node makes a Node whose agent is ready and whose NIC is up.
func (w *world) node(name, physical string) {
	w.t.Helper()
	w.create(objects.Node(name))
	offer := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.create(offer)
	offer.Status = objects.NodeNetworkStatus(physical)
	w.must(api.Status().Update(w.t.Context(), offer))
}

// agent runs a node's address management, with the caches of a real agent.
func (w *world) agent(node string) *ipam.Manager {
	w.t.Helper()
	skip := true
	mgr, err := ctrl.NewManager(connection, ctrl.Options{
		Scheme:     api.Scheme(),
		Metrics:    server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skip},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:          {Field: fields.OneTermEqualSelector("metadata.name", node)},
			&v1alpha1.NodeNetwork{}: {Field: fields.OneTermEqualSelector("metadata.name", node)},
			&corev1.Pod{}:           {Field: fields.OneTermEqualSelector("spec.nodeName", node)},
			&v1alpha1.IPBlock{}:     {Field: fields.OneTermEqualSelector(v1alpha1.FieldIPBlockNodeName, node)},
		}},
	})
	w.must(err)
	manager := ipam.New(ipam.Config{JournalPath: filepath.Join(w.t.TempDir(), "addresses.journal"), Wait: ipam.DefaultWait})
	claimer := ipam.NewClaimer(
		ipam.ClaimerConfig{NodeName: node, ScarceGrace: 2 * time.Second, UnusedGrace: 2 * time.Second, DrainGrace: 100 * time.Millisecond},
		ipam.ClaimerDeps{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Manager: manager})
	w.must(claimer.SetupWithManager(mgr), manager.Replay(func(ipam.Lease) bool { return true }))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, manager.Close()); err != nil {
			w.t.Errorf("stopping the agent of %s: %v", node, err)
		}
	})
	return manager
}

// pod asks for the test's Network.
func (w *world) pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{v1alpha1.AnnotationNetworks: w.network.Name}},
		Spec: corev1.PodSpec{
			SchedulerName: v1alpha1.DefaultSchedulerName,
			Containers:    []corev1.Container{{Name: "c", Image: "none"}},
			Tolerations:   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
	for _, c := range change {
		c(pod)
	}
	w.create(pod)
	return pod
}

func on(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node} }
}

func by(scheduler string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.SchedulerName = scheduler }
}

// start waits until the pod is bound and does what its CNI ADD would: it must
// get an address without being refused.
func (w *world) start(pod *corev1.Pod) {
	w.t.Helper()
	w.eventually(func() string {
		w.must(api.Get(w.t.Context(), client.ObjectKeyFromObject(pod), pod))
		if pod.Spec.NodeName == "" {
			return fmt.Sprintf("pod %s is not bound; the scheduler says:\n%s\nblocks are\n%s", pod.Name, strings.Join(w.complaints(pod), "\n"), strings.Join(w.blocks(), "\n"))
		}
		return ""
	})
	owner := ipam.Owner{PodUID: string(pod.UID), PodNamespace: pod.Namespace, PodName: pod.Name, ContainerID: "sandbox-of-" + pod.Name, IfName: "net1"}
	if _, err := w.agents[pod.Spec.NodeName].Reserve(w.t.Context(), []ipam.Ask{{Owner: owner, Network: w.network.Name}}); err != nil {
		w.t.Fatalf("pod %s was bound to node %s but gets no address: %v", pod.Name, pod.Spec.NodeName, err)
	}
}

// startAll starts pods as they are bound, until so many are, and returns them.
func (w *world) startAll(count int) (bound []*corev1.Pod) {
	w.t.Helper()
	w.eventually(func() string {
		var pods corev1.PodList
		w.must(api.List(w.t.Context(), &pods, client.InNamespace("default")))
		bound = nil
		for i := range pods.Items {
			if pods.Items[i].Spec.NodeName != "" {
				bound = append(bound, &pods.Items[i])
				w.start(&pods.Items[i])
			}
		}
		if len(bound) != count {
			return fmt.Sprintf("%d pods are bound, want %d; blocks are\n%s", len(bound), count, strings.Join(w.blocks(), "\n"))
		}
		return ""
	})
	return bound
}

// end deletes the pod as its kubelet would, after the CNI DEL.
func (w *world) end(pod *corev1.Pod) {
	w.t.Helper()
	if agent := w.agents[pod.Spec.NodeName]; agent != nil {
		w.must(agent.Release(w.t.Context(), "sandbox-of-"+pod.Name))
	}
	w.must(api.Delete(w.t.Context(), pod, client.GracePeriodSeconds(0)))
}

// eventually waits until check finds nothing to say.
func (w *world) eventually(check func() string) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(complaint)
		}
	}
}

// awaitTight waits until the controller has called the Network Tight.
func (w *world) awaitTight() {
	w.t.Helper()
	w.eventually(func() string {
		w.must(api.Get(w.t.Context(), client.ObjectKeyFromObject(w.network), w.network))
		if !meta.IsStatusConditionTrue(w.network.Status.Conditions, v1alpha1.ConditionTight) {
			return fmt.Sprint("the network's conditions are ", w.network.Status.Conditions)
		}
		return ""
	})
}

// blocks lists the Network's blocks as "cidr node", with "!" if deleted.
func (w *world) blocks() []string {
	w.t.Helper()
	var list v1alpha1.IPBlockList
	w.must(api.List(w.t.Context(), &list, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: w.network.Name}))
	var out []string
	for i := range list.Items {
		text := string(list.Items[i].Spec.CIDR) + " " + list.Items[i].Spec.NodeName
		if list.Items[i].DeletionTimestamp != nil {
			text += " !"
		}
		out = append(out, text)
	}
	return out
}

// complaints are the notes of the pod's FailedScheduling events.
func (w *world) complaints(pod *corev1.Pod) []string {
	w.t.Helper()
	var list eventsv1.EventList
	w.must(api.List(w.t.Context(), &list, client.InNamespace(pod.Namespace)))
	var out []string
	for i := range list.Items {
		if event := &list.Items[i]; event.Regarding.UID == pod.UID && event.Reason == "FailedScheduling" {
			out = append(out, event.Note)
		}
	}
	return out
}

func (w *world) awaitComplaint(pod *corev1.Pod, want string) {
	w.t.Helper()
	w.eventually(func() string {
		said := strings.Join(w.complaints(pod), "\n")
		if !strings.Contains(said, want) {
			return fmt.Sprintf("no event of pod %s says %q, only:\n%s", pod.Name, want, said)
		}
		return ""
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/network"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/objects"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

const (
	networkName  = "wide"
	physicalName = "phy-wide"

	// patience bounds how long nothing may happen while something is awaited, on
	// a machine that does much else.
	patience = 60 * time.Second

	// writers is how many requests the test has under way at once.
	writers = 32
)

// world is an API server with nodes that share one Network, the parts of
// netplane that matter to it, and their agents.
type world struct {
	t       *testing.T
	api     client.Client // asks the API server
	seen    client.Reader // asks caches, which may be behind
	fleet   *fleet
	network *v1alpha1.Network
}

// newWorld makes the nodes, starts everything, makes the Network, and waits
// until that is Tight.
func newWorld(t *testing.T, nodes int, subnet v1alpha1.CIDR) *world {
	t.Helper()
	config := apiserver.Start(t)
	api, err := apiserver.NewClient(config)
	must(t, err)
	w := &world{t: t, api: api}
	w.createAll(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	must(t, apiserver.Apply(t.Context(), api, apiserver.Manifests+"/scheduler/rbac.yaml", apiserver.Manifests+"/policies/ipblock-in-network.yaml"))
	w.createAll(&v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: physicalName}})
	w.createNodes(nodes)
	w.startParts(config)
	w.network = &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: networkName},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: physicalName, Plugin: v1alpha1.PluginMacvlan, Subnet: subnet},
	}
	w.createAll(w.network)
	w.eventually(func() (string, int) {
		must(t, api.Get(t.Context(), client.ObjectKeyFromObject(w.network), w.network))
		if !meta.IsStatusConditionTrue(w.network.Status.Conditions, v1alpha1.ConditionTight) {
			return fmt.Sprint("the network's conditions are ", w.network.Status.Conditions), 0
		}
		return "", 0
	})
	return w
}

// startParts runs the controller and the nodes in this process, and the
// scheduler, as it is shipped, in its own.
func (w *world) startParts(config *rest.Config) {
	w.t.Helper()
	quick := rest.CopyConfig(config)
	quick.QPS = -1
	mgr, err := ctrl.NewManager(quick, ctrl.Options{Scheme: w.api.Scheme(), Metrics: server.Options{BindAddress: "0"}})
	must(w.t, err, network.Setup(mgr, network.Options{Registerer: prometheus.NewRegistry()}))
	w.fleet, w.seen = newFleet(w.t, mgr), mgr.GetCache()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		must(w.t, <-ended)
	})
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, config, w.t.TempDir())
	must(w.t, err)
	// Whoever waits must be woken by an event: nothing is tried again for its age.
	schedulerprocess.Start(w.t, file, "--leader-elect=false", "--pod-max-in-unschedulable-pods-duration=24h")
}

func nodeName(i int) string { return fmt.Sprint("node-", i) }

// createNodes makes nodes whose agent is ready and whose NIC is up.
func (w *world) createNodes(count int) {
	w.t.Helper()
	w.parallel(count, func(ctx context.Context, i int) error {
		node := objects.Node(nodeName(i))
		node.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("250") // addresses are to be what runs out
		offer := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i)}}
		if err := errors.Join(w.api.Create(ctx, node), w.api.Create(ctx, offer)); err != nil {
			return err
		}
		offer.Status = objects.NodeNetworkStatus(physicalName)
		return w.api.Status().Update(ctx, offer)
	})
}

// podOf asks for so many interfaces in the Network.
func podOf(name string, interfaces int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Annotations: map[string]string{
			v1alpha1.AnnotationNetworks: strings.TrimSuffix(strings.Repeat(networkName+",", interfaces), ","),
		}},
		Spec: corev1.PodSpec{
			SchedulerName: v1alpha1.DefaultSchedulerName,
			Containers:    []corev1.Container{{Name: "c", Image: "none"}},
			Tolerations:   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
}

// pinned is a pod that may run on one node only, as those of a DaemonSet.
func pinned(pod *corev1.Pod, node string) *corev1.Pod {
	only := corev1.NodeSelectorRequirement{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}
	pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{only}}},
		},
	}}
	return pod
}

// mayRunOn is the node that the pod is pinned to, or empty.
func mayRunOn(pod *corev1.Pod) string {
	if pod.Spec.Affinity == nil {
		return ""
	}
	return pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
}

// createAll creates objects.
func (w *world) createAll(objects ...client.Object) {
	w.t.Helper()
	w.parallel(len(objects), func(ctx context.Context, i int) error { return w.api.Create(ctx, objects[i]) })
}

// createPods creates pods.
func (w *world) createPods(count int, pod func(i int) *corev1.Pod) {
	w.t.Helper()
	w.parallel(count, func(ctx context.Context, i int) error { return w.api.Create(ctx, pod(i)) })
}

// end ends running pods as their kubelets would.
func (w *world) end(pods ...*corev1.Pod) {
	w.t.Helper()
	w.parallel(len(pods), func(ctx context.Context, i int) error { return w.fleet.end(ctx, pods[i]) })
}

// parallel does count things, many at once.
func (w *world) parallel(count int, do func(ctx context.Context, i int) error) {
	w.t.Helper()
	group, ctx := errgroup.WithContext(w.t.Context())
	group.SetLimit(writers)
	for i := range count {
		group.Go(func() error { return do(ctx, i) })
	}
	must(w.t, group.Wait())
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check finds nothing to say, as long as its measure of
// what is done goes on changing.
func (w *world) eventually(check func() (complaint string, done int)) {
	w.t.Helper()
	before, deadline := -1, time.Now().Add(patience)
	for {
		complaint, done := check()
		if complaint == "" {
			return
		}
		if done != before {
			before, deadline = done, time.Now().Add(patience)
		}
		if time.Now().After(deadline) {
			w.t.Fatal(complaint)
		}
		time.Sleep(250 * time.Millisecond)
	}
}

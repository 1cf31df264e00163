// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/endpointslice"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/objects"
)

// timeout is generous for a busy machine; what must be quick has a test of its own.
const timeout = 20 * time.Second

// world is an API server with the controller running.
type world struct {
	client.Client
	config *rest.Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Services of two families need a cluster of two.
	dualStack := apiserver.WithAPIServerFlag("service-cluster-ip-range", "10.0.0.0/24,fd00:96::/112")
	w := &world{config: apiserver.Start(t, dualStack)}
	var err error
	if w.Client, err = apiserver.NewClient(w.config); err != nil {
		t.Fatal(err)
	}
	w.grantRights(t)
	w.node(t, "worker", "phy-net0", "phy-net1")
	w.node(t, "worker2", "phy-net0", "phy-net1")
	w.create(t, w.network("management", "phy-net0", "10.10.0.0/16", "fd00:10:10::/64"))
	w.create(t, w.network("data", "phy-net1", "10.20.0.0/16", "fd00:10:20::/64"))
	for i, node := range []string{"worker", "worker2"} {
		w.block(t, "management", node, fmt.Sprintf("10.10.%d.0/26", i+1))
		w.block(t, "data", node, fmt.Sprintf("10.20.%d.0/26", i+1))
	}
	return w
}

// grantRights installs the rights of the shipped manifests, which the
// controller then runs with: what they lack fails the tests.
func (w *world) grantRights(t *testing.T) {
	t.Helper()
	w.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	if err := apiserver.Apply(t.Context(), w, apiserver.Manifests+"/controller/rbac.yaml", apiserver.Manifests+"/policies/child-services.yaml"); err != nil {
		t.Fatal(err)
	}
}

// run starts the controller; stop ends it and waits.
func (w *world) run(t *testing.T) (stop func()) {
	t.Helper()
	return w.runWith(t, endpointslice.Options{})
}

func (w *world) runWith(t *testing.T, options endpointslice.Options, manage ...func(*ctrl.Options)) (stop func()) {
	t.Helper()
	ctrl.SetLogger(klog.Background())
	restricted := rest.CopyConfig(w.config)
	restricted.Impersonate.UserName = "system:serviceaccount:netplane-system:netplane-controller"
	ours := labels.SelectorFromSet(labels.Set{discoveryv1.LabelManagedBy: v1alpha1.EndpointSliceManagedBy})
	managed := ctrl.Options{
		Scheme:  w.Scheme(),
		Logger:  klog.Background(),
		Metrics: metricsserver.Options{BindAddress: "0"},
		Cache: cache.Options{
			ByObject:         map[client.Object]cache.ByObject{&discoveryv1.EndpointSlice{}: {Label: ours}},
			DefaultTransform: cache.TransformStripManagedFields(),
		},
		// Tests run one manager after the other in one process.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	}
	for _, set := range manage {
		set(&managed)
	}
	mgr, err := ctrl.NewManager(restricted, managed)
	if err != nil {
		t.Fatal(err)
	}
	if err := endpointslice.Setup(mgr, options); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("running the manager: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (w *world) create(t *testing.T, object client.Object) {
	t.Helper()
	if err := w.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// change reads the object again, changes it and writes it.
func change[T client.Object](t *testing.T, w *world, object T, status bool, edit func(T)) {
	t.Helper()
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		t.Fatal(err)
	}
	before := object.DeepCopyObject().(client.Object)
	edit(object)
	var err error
	if status {
		err = w.Status().Patch(t.Context(), object, client.MergeFrom(before))
	} else {
		err = w.Patch(t.Context(), object, client.MergeFrom(before))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) namespace(t *testing.T) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "shop-"}}
	w.create(t, namespace)
	// No controller empties a namespace here. Tests use the same addresses, and
	// an address that two pods claim is withheld.
	t.Cleanup(func() {
		err := w.DeleteAllOf(context.Background(), &corev1.Pod{}, client.InNamespace(namespace.Name), client.GracePeriodSeconds(0))
		if err != nil {
			t.Error(err)
		}
	})
	return namespace.Name
}

func (w *world) node(t *testing.T, name string, physicalNets ...string) {
	t.Helper()
	w.create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "zone-of-" + name}}})
	w.create(t, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}})
	w.link(t, name, map[string]bool{physicalNets[0]: true, physicalNets[1]: true})
}

// link says which of a node's NICs are up.
func (w *world) link(t *testing.T, node string, physicalNets map[string]bool) {
	t.Helper()
	object := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node}}
	change(t, w, object, true, func(n *v1alpha1.NodeNetwork) {
		n.Status.PhysicalNetworks = nil
		for name, up := range physicalNets {
			n.Status.PhysicalNetworks = append(n.Status.PhysicalNetworks, v1alpha1.NodePhysicalNetwork{Name: name, Ready: up})
		}
	})
}

func (w *world) network(name, physicalNet string, subnet, subnet6 v1alpha1.CIDR) *v1alpha1.Network {
	return &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: physicalNet, Plugin: v1alpha1.PluginMacvlan, Subnet: subnet, Subnet6: subnet6},
	}
}

func (w *world) block(t *testing.T, network, node, cidr string) {
	t.Helper()
	var of v1alpha1.Network
	if err := w.Get(t.Context(), client.ObjectKey{Name: network}, &of); err != nil {
		t.Fatal(err)
	}
	w.create(t, objects.Block(&of, cidr, node, "node"))
}

// service is a headless Service with one port over the networks that the
// annotation names.
func service(namespace, annotation string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web", Namespace: namespace, Labels: map[string]string{"team": "shop"},
			Annotations: map[string]string{v1alpha1.AnnotationNetworks: annotation},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP:      corev1.ClusterIPNone,
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Selector:       map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork},
			Ports:          []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
}

// pod makes a running, ready pod with an address of the cluster network on eth0
// and the given attachments.
func (w *world) pod(t *testing.T, namespace, name, node string, attachments ...podnetworks.Attachment) *corev1.Pod {
	t.Helper()
	pod := w.podNamed(t, namespace, name, "", node)
	w.attach(t, pod, attachments...)
	return pod
}

// podNamed makes a running, ready pod without attachments. With a subdomain it
// has its name as host name, as a StatefulSet's pods have.
func (w *world) podNamed(t *testing.T, namespace, name, subdomain, node string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace, Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{v1alpha1.AnnotationNetworks: "management@eth1,data@eth2"},
		},
		Spec: corev1.PodSpec{NodeName: node, Subdomain: subdomain, Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	}
	if subdomain != "" {
		pod.Spec.Hostname = name
	}
	w.create(t, pod)
	change(t, w, pod, true, func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Status.PodIP = "10.244.1.5"
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd00:244::5"}}
		setReady(p, true)
	})
	return pod
}

func (w *world) attach(t *testing.T, pod *corev1.Pod, attachments ...podnetworks.Attachment) {
	t.Helper()
	all := append([]podnetworks.Attachment{{Name: "kindnet", Interface: "eth0", IPs: []string{"10.244.1.5", "fd00:244::5"}, Default: true}}, attachments...)
	text, err := podnetworks.FormatStatus(all)
	if err != nil {
		t.Fatal(err)
	}
	change(t, w, pod, false, func(p *corev1.Pod) {
		p.Annotations[v1alpha1.AnnotationNetworkStatus] = text
		p.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] = "sandbox"
	})
}

func attachment(network, ifname string, ips ...string) podnetworks.Attachment {
	return podnetworks.Attachment{Name: network, Interface: ifname, IPs: ips}
}

func setReady(pod *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
}

// slicesOf lists the slices of the Service web, whoever made them.
func (w *world) slicesOf(ctx context.Context, namespace string) ([]discoveryv1.EndpointSlice, error) {
	return w.slicesNamed(ctx, namespace, "web")
}

func (w *world) slicesNamed(ctx context.Context, namespace, service string) ([]discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := w.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service})
	return list.Items, err
}

// endpoints are a Service's endpoints as lines "network family: pod address
// state", sorted; a slice without endpoints is "network family: -".
func (w *world) endpoints(ctx context.Context, namespace, service string) []string {
	items, err := w.slicesNamed(ctx, namespace, service)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for i := range items {
		prefix := fmt.Sprintf("%s %s:", items[i].Labels[v1alpha1.LabelNetwork], items[i].AddressType)
		if len(items[i].Endpoints) == 0 {
			out = append(out, prefix+" -")
		}
		for _, e := range items[i].Endpoints {
			out = append(out, fmt.Sprintf("%s %s %s %s", prefix, e.TargetRef.Name, strings.Join(e.Addresses, ","), state(e.Conditions)))
		}
	}
	slices.Sort(out)
	return out
}

func state(c discoveryv1.EndpointConditions) string {
	switch {
	case *c.Ready:
		return "ready"
	case *c.Terminating && *c.Serving:
		return "terminating,serving"
	case *c.Terminating:
		return "terminating"
	default:
		return "notready"
	}
}

// wantEndpoints waits until the endpoints of the Service web are these.
func (w *world) wantEndpoints(t *testing.T, namespace string, want ...string) {
	t.Helper()
	w.wantEndpointsOf(t, namespace, "web", want...)
}

func (w *world) wantEndpointsOf(t *testing.T, namespace, service string, want ...string) {
	t.Helper()
	eventually(t, timeout, func() string { return cmp.Diff(want, w.endpoints(t.Context(), namespace, service)) })
}

// condition is a condition of a Service as "status reason: message".
func (w *world) condition(ctx context.Context, namespace, service, of string) string {
	var svc corev1.Service
	if err := w.Get(ctx, client.ObjectKey{Namespace: namespace, Name: service}, &svc); err != nil {
		return err.Error()
	}
	for _, c := range svc.Status.Conditions {
		if c.Type == of {
			return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

// wantCondition waits for the condition of the Service web about its endpoints.
func (w *world) wantCondition(t *testing.T, namespace, want string) {
	t.Helper()
	w.wantConditionOf(t, namespace, "web", v1alpha1.ConditionEndpointsByNetwork, want)
}

func (w *world) wantConditionOf(t *testing.T, namespace, service, of, want string) {
	t.Helper()
	eventually(t, timeout, func() string { return cmp.Diff(want, w.condition(t.Context(), namespace, service, of)) })
}

// wantEvent waits for a warning about the object.
func (w *world) wantEvent(t *testing.T, namespace, object, reason, message string) {
	t.Helper()
	eventually(t, timeout, func() string {
		var list corev1.EventList
		if err := w.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return err.Error()
		}
		var seen []string
		for _, e := range list.Items {
			if e.InvolvedObject.Name == object && e.Reason == reason && e.Message == message && e.Type == corev1.EventTypeWarning {
				return ""
			}
			seen = append(seen, fmt.Sprintf("%s %s: %s", e.InvolvedObject.Name, e.Reason, e.Message))
		}
		return fmt.Sprintf("no event %s on %s %q, but %q", reason, object, message, seen)
	})
}

// eventually waits until check returns nothing; what it returned last is the failure.
func eventually(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s:\n%s", limit, problem)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

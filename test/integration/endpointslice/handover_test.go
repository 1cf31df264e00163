// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	ours "github.com/netplane/netplane/netcontroller/endpointslice"
)

// takeOver is long enough for the steps of a test.
const takeOver = 10 * time.Second

// TestHandOver has kube-controller-manager's own controller run beside ours.
func TestHandOver(t *testing.T) {
	w := newWorld(t)
	w.runBuiltIn(t)
	w.runWith(t, ours.Options{TakeOverPeriod: takeOver})
	w.awaitStart(t)
	for name, test := range map[string]func(*testing.T, *world){
		"the annotation, then the key":         testAnnotationThenKey,
		"the annotation, and no key":           testAnnotationAlone,
		"the annotation added and taken back":  testAnnotationTakenBack,
		"annotation and key at once":           testBothAdded,
		"the key removed":                      testKeyRemoved,
		"annotation and key removed at once":   testBothRemoved,
		"the annotation removed, then the key": testAnnotationRemovedThenKey,
		"the key removed and put back":         testKeyPutBack,
		"the key with another value":           testKeyOfOtherValue,
		"a malformed annotation added":         testMalformedAdded,
		"the Service deleted at a hand-over":   testDeletedAtHandOver,
		"from one network to another":          testNetworksChanged,
		"the selector changed":                 testSelectorChanged,
		"the selector removed":                 testSelectorRemoved,
		"the selector added":                   testSelectorAdded,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

// awaitStart waits until the controller acts: an annotation that is added before
// is not seen to come.
func (w *world) awaitStart(t *testing.T) {
	t.Helper()
	namespace := w.namespace(t)
	w.create(t, service(namespace, "data"))
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
}

// TestCreatedWithoutTheKey: what was never Kubernetes' own is never mixed.
func TestCreatedWithoutTheKey(t *testing.T) {
	w := newWorld(t)
	w.runBuiltIn(t)
	stop := w.run(t)
	namespace := w.namespace(t)
	w.readyPods(t, namespace)
	never := w.never(t, namespace, func(s *discoveryv1.EndpointSlice) bool {
		return s.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy
	})
	svc := service(namespace, "data")
	delete(svc.Spec.Selector, v1alpha1.SelectorEndpointsKey)
	w.create(t, svc)
	message := "spec.selector lacks netplane.io/endpoints: by-network: add it, or Kubernetes itself publishes the pods' addresses of the cluster network"
	w.wantCondition(t, namespace, "False SelectorKeyMissing: "+message)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonSelectorKeyMissing, message)
	w.wantEndpoints(t, namespace, builtIn...)
	never()
	change(t, w, svc, false, addKey)
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")

	t.Run("while the controller was away", func(t *testing.T) {
		stop()
		away := w.namespace(t)
		svc := service(away, "data")
		delete(svc.Spec.Selector, v1alpha1.SelectorEndpointsKey)
		w.create(t, svc)
		w.wantEndpoints(t, away, " IPv4: -", " IPv6: -")
		time.Sleep(11 * time.Second) // whatever its age
		never := w.never(t, away, func(s *discoveryv1.EndpointSlice) bool {
			return s.Labels[discoveryv1.LabelManagedBy] == v1alpha1.EndpointSliceManagedBy
		})
		stop = w.run(t)
		w.wantCondition(t, away, "False SelectorKeyMissing: "+message)
		never()
		// Who wants it moved takes the annotation away and adds it again.
		change(t, w, svc, false, func(s *corev1.Service) { s.Annotations = nil })
		w.wantCondition(t, away, "")
		change(t, w, svc, false, annotate)
		w.wantConditionLike(t, away, v1alpha1.ConditionEndpointsByNetwork, "Unknown AwaitingSelectorKey: ", "")
	})
	t.Run("with the key, when the controller starts", func(t *testing.T) {
		stop()
		// The same addresses again.
		if err := w.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(namespace), client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
		namespace := w.namespace(t)
		w.readyPods(t, namespace)
		w.create(t, service(namespace, "data"))
		w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -")
		w.run(t)
		w.wantEndpoints(t, namespace, onData...)
	})
}

// TestHandingBackWaitsForTheBuiltInController, also over a restart of ours.
func TestHandingBackWaitsForTheBuiltInController(t *testing.T) {
	w := newWorld(t)
	stop := w.run(t)
	namespace := w.namespace(t)
	svc := service(namespace, "data")
	w.create(t, svc)
	w.readyPods(t, namespace)
	alone := onData[2:] // without the placeholders of the built-in controller
	w.wantEndpoints(t, namespace, alone...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, removeBoth)
	const handing = "Unknown HandingBack: endpoints stay published on: data, until those of Kubernetes itself are ready"
	w.wantCondition(t, namespace, handing)
	stop()
	w.run(t)
	// Pods are followed still.
	change(t, w, podNamed(namespace, "web-1"), true, func(p *corev1.Pod) { setReady(p, false) })
	w.wantEndpoints(t, namespace, "data IPv4: web-0 10.20.1.5 ready", "data IPv4: web-1 10.20.1.6 notready", "data IPv6: -")
	change(t, w, podNamed(namespace, "web-1"), true, func(p *corev1.Pod) { setReady(p, true) })
	w.wantEndpoints(t, namespace, alone...)
	w.wantCondition(t, namespace, handing)
	w.runBuiltIn(t)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, "")
	w.wantChildren(t, namespace)
	gapless("web-0")
}

// What the Service web has while all is Kubernetes' own, and while all is ours;
// the built-in controller leaves empty slices for a selector that finds nothing.
var (
	builtIn = []string{
		" IPv4: web-0 10.244.1.5 ready", " IPv4: web-1 10.244.1.5 ready",
		" IPv6: web-0 fd00:244::5 ready", " IPv6: web-1 fd00:244::5 ready",
	}
	onData = []string{
		" IPv4: -", " IPv6: -",
		"data IPv4: web-0 10.20.1.5 ready", "data IPv4: web-1 10.20.1.6 ready", "data IPv6: -",
	}
)

// beside are both of the above.
func beside() []string {
	out := append(slices.Clone(builtIn), onData[2:]...)
	slices.Sort(out)
	return out
}

func (w *world) readyPods(t *testing.T, namespace string) {
	t.Helper()
	w.pod(t, namespace, "web-0", "worker", attachment("data", "eth2", "10.20.1.5"))
	w.pod(t, namespace, "web-1", "worker", attachment("data", "eth2", "10.20.1.6"))
}

func podNamed(namespace, name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

func addKey(s *corev1.Service) {
	s.Spec.Selector[v1alpha1.SelectorEndpointsKey] = v1alpha1.SelectorEndpointsByNetwork
}

func removeKey(s *corev1.Service) { delete(s.Spec.Selector, v1alpha1.SelectorEndpointsKey) }

func annotate(s *corev1.Service) {
	s.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "data"}
}

func removeBoth(s *corev1.Service) {
	s.Annotations = nil
	removeKey(s)
}

// plainService is one that Kubernetes itself publishes, with two ready pods.
func (w *world) plainService(t *testing.T) (namespace string, svc *corev1.Service) {
	t.Helper()
	namespace = w.namespace(t)
	w.readyPods(t, namespace)
	svc = service(namespace, "")
	removeBoth(svc)
	w.create(t, svc)
	w.wantEndpoints(t, namespace, builtIn...)
	return namespace, svc
}

// ownService is one that we publish, with two ready pods.
func (w *world) ownService(t *testing.T) (namespace string, svc *corev1.Service) {
	t.Helper()
	namespace = w.namespace(t)
	w.readyPods(t, namespace)
	svc = service(namespace, "data")
	w.create(t, svc)
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	return namespace, svc
}

const awaiting = "Unknown AwaitingSelectorKey: endpoints are published on: data, beside those of Kubernetes itself: add netplane.io/endpoints: by-network to spec.selector within 10s, or ours are withdrawn"

func testAnnotationThenKey(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, annotate)
	w.wantCondition(t, namespace, awaiting)
	w.wantEvent(t, namespace, "web", v1alpha1.ReasonAwaitingSelectorKey, strings.SplitN(awaiting, ": ", 2)[1])
	w.wantEndpoints(t, namespace, beside()...)
	change(t, w, svc, false, addKey)
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
	gapless("web-0", "web-1")
}

func testAnnotationAlone(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, annotate)
	w.wantEndpoints(t, namespace, beside()...)
	w.wantChildren(t, namespace, "web-data of web on data: None [IPv4 IPv6] [http:80]")
	w.wantCondition(t, namespace, keyMissing)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantChildren(t, namespace)
	gapless("web-0", "web-1")
}

func testAnnotationTakenBack(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, annotate)
	w.wantCondition(t, namespace, awaiting)
	change(t, w, svc, false, removeBoth)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, "")
	gapless("web-0", "web-1")
}

// In one step the two controllers race, so that there may be a gap.
func testBothAdded(t *testing.T, w *world) {
	namespace, svc := w.plainService(t)
	change(t, w, svc, false, func(s *corev1.Service) {
		annotate(s)
		addKey(s)
	})
	w.wantEndpoints(t, namespace, onData...)
	w.wantCondition(t, namespace, "True EndpointsPublished: endpoints are published on: data")
}

func testKeyRemoved(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, removeKey)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, keyMissing)
	w.wantChildren(t, namespace)
	gapless("web-0", "web-1")
}

func testBothRemoved(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, removeBoth)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, "")
	w.wantNames(t, namespace, "")
	w.wantChildren(t, namespace)
	w.wantEndpointsOf(t, namespace, "web-data")
	gapless("web-0", "web-1")
}

func testAnnotationRemovedThenKey(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations = nil })
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -",
		"default IPv4: web-0 10.244.1.5 ready", "default IPv4: web-1 10.244.1.5 ready",
		"default IPv6: web-0 fd00:244::5 ready", "default IPv6: web-1 fd00:244::5 ready")
	change(t, w, svc, false, removeKey)
	w.wantEndpoints(t, namespace, builtIn...)
	w.wantCondition(t, namespace, "")
	w.wantChildren(t, namespace)
	gapless("web-0", "web-1")
}

func testNetworksChanged(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	for name, last := range map[string]string{"web-0": "5", "web-1": "6"} {
		w.attach(t, podNamed(namespace, name), attachment("data", "eth2", "10.20.1."+last), attachment("management", "eth1", "10.10.1."+last))
	}
	gapless := w.gapless(t, namespace)
	change(t, w, svc, false, func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationNetworks] = "http: [management]" })
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -", "management IPv4: web-0 10.10.1.5 ready", "management IPv4: web-1 10.10.1.6 ready", "management IPv6: -")
	w.wantChildren(t, namespace, "web-management of web on management: None [IPv4 IPv6] [http:80]")
	gapless("web-0", "web-1")
}

func testSelectorChanged(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	gapless := w.gapless(t, namespace)
	change(t, w, podNamed(namespace, "web-0"), false, func(p *corev1.Pod) { p.Labels["tier"] = "front" })
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.Selector["tier"] = "front" })
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -", "data IPv4: web-0 10.20.1.5 ready", "data IPv6: -")
	gapless("web-0")
}

func testSelectorRemoved(t *testing.T, w *world) {
	namespace, svc := w.ownService(t)
	change(t, w, svc, false, func(s *corev1.Service) { s.Spec.Selector = nil })
	w.wantEndpoints(t, namespace, " IPv4: -", " IPv6: -") // the built-in controller leaves them alone
	w.wantChildren(t, namespace)
	w.wantCondition(t, namespace, keyMissing)
}

func testSelectorAdded(t *testing.T, w *world) {
	namespace := w.namespace(t)
	w.readyPods(t, namespace)
	svc := service(namespace, "data")
	svc.Spec.Selector = nil
	w.create(t, svc)
	w.wantCondition(t, namespace, keyMissing)
	change(t, w, svc, false, func(s *corev1.Service) {
		s.Spec.Selector = map[string]string{"app": "web", v1alpha1.SelectorEndpointsKey: v1alpha1.SelectorEndpointsByNetwork}
	})
	w.wantEndpoints(t, namespace, onData...)
}

// runBuiltIn runs kube-controller-manager's controller of EndpointSlices.
func (w *world) runBuiltIn(t *testing.T) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(w.config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(clients, 0)
	controller := endpointslice.NewController(ctx, factory.Core().V1().Pods(), factory.Core().V1().Services(), factory.Core().V1().Nodes(),
		factory.Discovery().V1().EndpointSlices(), 100, clients, 0)
	factory.Start(ctx.Done())
	done := make(chan struct{})
	go func() {
		defer close(done)
		controller.Run(ctx, 1)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		factory.Shutdown()
	})
}

// watchSlices calls each with all slices of the Service web after every change,
// in the order of the changes, from now on until stop is called.
func (w *world) watchSlices(t *testing.T, namespace string, each func(map[string]*discoveryv1.EndpointSlice)) (stop func()) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(w.config)
	if err != nil {
		t.Fatal(err)
	}
	options := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=web"}
	list, err := clients.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	now := map[string]*discoveryv1.EndpointSlice{}
	for i := range list.Items {
		now[list.Items[i].Name] = &list.Items[i]
	}
	options.ResourceVersion = list.ResourceVersion
	watcher, err := clients.DiscoveryV1().EndpointSlices(namespace).Watch(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var stopping atomic.Bool
	var mu sync.Mutex
	go func() {
		defer close(done)
		for event := range watcher.ResultChan() {
			slice, ok := event.Object.(*discoveryv1.EndpointSlice)
			if !ok {
				if !stopping.Load() {
					t.Errorf("the watch of slices says %v", event)
				}
				return
			}
			mu.Lock()
			if event.Type == watch.Deleted {
				delete(now, slice.Name)
			} else {
				now[slice.Name] = slice
			}
			each(now)
			mu.Unlock()
		}
	}()
	// A watch may be behind what a list says.
	upToDate := func() string {
		list, err := w.slicesOf(t.Context(), namespace)
		if err != nil {
			return err.Error()
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range list {
			if seen := now[list[i].Name]; seen == nil || seen.ResourceVersion != list[i].ResourceVersion {
				return "the watch has not told of slice " + list[i].Name
			}
		}
		if len(now) != len(list) {
			return fmt.Sprintf("the watch tells of %d slices, there are %d", len(now), len(list))
		}
		return ""
	}
	return func() {
		t.Helper()
		eventually(t, timeout, upToDate)
		stopping.Store(true)
		watcher.Stop()
		<-done
	}
}

// gapless records from now on; what it returns fails the test if at any moment
// one of the pods had no ready IPv4 endpoint.
func (w *world) gapless(t *testing.T, namespace string) func(pods ...string) {
	t.Helper()
	var history []map[string]bool
	stop := w.watchSlices(t, namespace, func(all map[string]*discoveryv1.EndpointSlice) {
		ready := map[string]bool{}
		for _, slice := range all {
			for _, e := range slice.Endpoints {
				if slice.AddressType == discoveryv1.AddressTypeIPv4 && ptr.Deref(e.Conditions.Ready, false) {
					ready[e.TargetRef.Name] = true
				}
			}
		}
		history = append(history, ready)
	})
	return func(pods ...string) {
		t.Helper()
		stop()
		if len(history) == 0 {
			t.Error("no slice was changed")
		}
		for i, ready := range history {
			for _, pod := range pods {
				if !ready[pod] {
					t.Errorf("after change %d of %d, %s is not ready in any slice, but %v", i+1, len(history), pod, ready)
				}
			}
		}
	}
}

// never records from now on; what it returns fails the test if ever there was
// such a slice.
func (w *world) never(t *testing.T, namespace string, unwanted func(*discoveryv1.EndpointSlice) bool) func() {
	t.Helper()
	var seen []string
	stop := w.watchSlices(t, namespace, func(all map[string]*discoveryv1.EndpointSlice) {
		for _, slice := range all {
			if unwanted(slice) {
				seen = append(seen, fmt.Sprintf("%s %v", client.ObjectKeyFromObject(slice), slice.Labels))
			}
		}
	})
	return func() {
		t.Helper()
		stop()
		if len(seen) > 0 {
			t.Errorf("there were slices: %v", seen)
		}
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipclaim_test tries the controllers of fixed addresses against a real
// API server, with the roles of manifests/base. The tests are kubelet, node
// agents and StatefulSet controller.
package ipclaim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/ipclaim"
	"github.com/netplane/netplane/test/integration/apiserver"
)

const (
	rolesFile = "../../../manifests/base/controller/rbac.yaml"
	account   = "system:serviceaccount:netplane-system:netplane-controller"

	// patience bounds every wait; what is awaited takes far less.
	patience = 60 * time.Second
	poll     = 20 * time.Millisecond
	// grace is short, but long enough to see that something waits for it.
	grace = 3 * time.Second

	namespace = metav1.NamespaceDefault
	subnet    = "10.10.0.0/16"
)

// world is an API server and who acts in it.
type world struct {
	t      *testing.T
	c      client.Client
	config *rest.Config
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return scheme
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := apiserver.Start(t)
	c, err := client.New(config, client.Options{Scheme: newScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, c: c, config: config}
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	w.install()
	for _, name := range []string{"a", "b"} {
		w.addNode(name)
	}
	return w
}

// with is the same world, for a part of a test.
func (w *world) with(t *testing.T) *world { return &world{t: t, c: w.c, config: w.config} }

// install makes the controller's roles, so that a missing right fails a test.
func (w *world) install() {
	w.t.Helper()
	file, err := os.Open(rolesFile)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	decoder := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			w.t.Fatalf("reading %s: %v", rolesFile, err)
		}
		if len(object.Object) > 0 {
			w.create(object)
		}
	}
}

// line is the controller's connection: it counts the writes of claims, and may
// break after one of them, whose reply is lost then.
type line struct {
	// underway is read-locked while a write is: the API server shows it before its
	// answer is here.
	underway sync.RWMutex

	inner http.RoundTripper

	mu          sync.Mutex
	writes      []string
	breakAfter  int // writes; 0 means never
	broken      bool
	forbiddings int
}

var errBroken = errors.New("the line is broken")

func (l *line) RoundTrip(request *http.Request) (*http.Response, error) {
	l.mu.Lock()
	broken := l.broken
	l.mu.Unlock()
	if broken {
		return nil, errBroken
	}
	if request.Method != http.MethodGet {
		l.underway.RLock()
		defer l.underway.RUnlock()
	}
	response, err := l.inner.RoundTrip(request)
	if err != nil {
		return response, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if response.StatusCode == http.StatusForbidden {
		l.forbiddings++
	}
	if request.Method == http.MethodGet || !strings.Contains(request.URL.Path, "/ipclaims") || response.StatusCode >= 300 {
		return response, nil
	}
	what := request.Method
	if strings.HasSuffix(request.URL.Path, "/status") {
		what += " status"
	}
	l.writes = append(l.writes, what)
	if l.breakAfter > 0 && len(l.writes) >= l.breakAfter {
		l.broken = true
		_ = response.Body.Close()
		return nil, errBroken
	}
	return response, nil
}

// takeWrites returns what was written since it was last called.
func (l *line) takeWrites() string {
	l.underway.Lock()
	defer l.underway.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := strings.Join(l.writes, ", ")
	l.writes = nil
	return out
}

func (l *line) isBroken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

// start runs the controllers until stop is called, or the test ends. Their
// connection breaks after so many writes of claims; 0 means never.
func (w *world) start(breakAfter int) (l *line, stop func()) {
	w.t.Helper()
	l = &line{breakAfter: breakAfter}
	config := rest.CopyConfig(w.config)
	config.Impersonate.UserName = account
	config.Impersonate.Groups = []string{"system:serviceaccounts", "system:authenticated"}
	config.Wrap(func(inner http.RoundTripper) http.RoundTripper { l.inner = inner; return l })
	yes := true
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: newScheme(w.t), Logger: logr.Discard(), Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: &yes},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := ipclaim.Setup(mgr, ipclaim.Options{Grace: grace, Registerer: prometheus.NewRegistry()}); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil && breakAfter == 0 {
				w.t.Errorf("the controllers ended with: %v", err)
			}
			if l.forbiddings > 0 {
				w.t.Error("the service account lacks a right")
			}
		})
	}
	w.t.Cleanup(stop)
	return l, stop
}

func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, object := range objects {
		if err := w.c.Create(w.t.Context(), object); err != nil {
			w.t.Fatalf("creating %T %s: %v", object, object.GetName(), err)
		}
	}
}

func (w *world) patchStatus(object client.Object, format string, args ...any) {
	w.t.Helper()
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, format, args...))
	if err := w.c.Status().Patch(w.t.Context(), object, patch); err != nil {
		w.t.Fatalf("writing the status of %T %s: %v", object, object.GetName(), err)
	}
}

// addNode makes a Node that is Ready, with a ready agent.
func (w *world) addNode(name string) {
	w.t.Helper()
	w.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}})
	w.answers(name, metav1.ConditionTrue)
}

// answers sets the readiness of a node and its agent.
func (w *world) answers(name string, status metav1.ConditionStatus) {
	w.t.Helper()
	w.patchStatus(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}},
		`{"status":{"conditions":[{"type":"Ready","status":%q,"lastTransitionTime":%q}]}}`, status, time.Now().UTC().Format(time.RFC3339))
	w.patchStatus(&v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}},
		`{"status":{"conditions":[{"type":"AgentReady","status":%q,"reason":"Test","message":"","lastTransitionTime":%q}]}}`, status, time.Now().UTC().Format(time.RFC3339))
}

// holds sets what a node's agent holds for pods that are gone.
func (w *world) holds(node, network string, pods ...*corev1.Pod) {
	w.t.Helper()
	var held []string
	for _, pod := range pods {
		held = append(held, fmt.Sprintf(`{"network":%q,"count":1,"podUID":%q,"fixed":true}`, network, pod.UID))
	}
	w.patchStatus(&v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node}}, `{"status":{"held":[%s]}}`, strings.Join(held, ","))
}

// holdsAddress sets that a node's agent holds an address for a pod that is gone.
func (w *world) holdsAddress(node, network, address, pod string) {
	w.t.Helper()
	w.patchStatus(&v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node}},
		`{"status":{"held":[{"network":%q,"count":1,"podUID":%q,"fixed":true,"address":%q}]}}`, network, pod, address)
}

// addNetwork makes a Network that is Ready; last is the static range's length.
func (w *world) addNetwork(name string, change ...func(*v1alpha1.Network)) *v1alpha1.Network {
	w.t.Helper()
	object := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy", Plugin: v1alpha1.PluginMacvlan, Subnet: subnet, StaticRange: "10.10.254.0/24"},
	}
	for _, f := range change {
		f(object)
	}
	w.create(object)
	w.patchStatus(object, `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Ready","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`)
	return object
}

// addPod makes a pod that is bound to no node yet.
func (w *world) addPod(name, networks string) *corev1.Pod {
	w.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	w.create(pod)
	return pod
}

// bind places a pod, as the scheduler does.
func (w *world) bind(pod *corev1.Pod, node string) {
	w.t.Helper()
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	if err := w.c.SubResource("binding").Create(w.t.Context(), pod, binding); err != nil {
		w.t.Fatalf("binding pod %s: %v", pod.Name, err)
	}
}

// end has a pod end and go, as kubelet does.
func (w *world) end(pod *corev1.Pod) {
	w.t.Helper()
	w.patchStatus(pod.DeepCopy(), `{"status":{"phase":"Succeeded"}}`)
	w.vanish(pod)
}

// vanish deletes a pod by force.
func (w *world) vanish(pod *corev1.Pod) {
	w.t.Helper()
	if err := w.c.Delete(w.t.Context(), pod.DeepCopy(), client.GracePeriodSeconds(0)); err != nil {
		w.t.Fatalf("deleting pod %s: %v", pod.Name, err)
	}
}

// eventually waits until check finds nothing wrong.
func (w *world) eventually(what string, check func(context.Context) error) {
	w.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(poll) {
		if err = check(w.t.Context()); err == nil {
			return
		}
	}
	w.t.Fatalf("%s: %v", what, err)
}

// claims lists those of a network.
func (w *world) claims(ctx context.Context, network string) ([]v1alpha1.IPClaim, error) {
	var list v1alpha1.IPClaimList
	err := w.c.List(ctx, &list, client.MatchingFields{v1alpha1.FieldIPClaimNetwork: network})
	return list.Items, err
}

// awaitHeld waits until the pod has a claim on the network, and its node is
// noted, if it has one.
func (w *world) awaitHeld(network string, pod *corev1.Pod, node string) *v1alpha1.IPClaim {
	w.t.Helper()
	var out *v1alpha1.IPClaim
	w.eventually(fmt.Sprintf("pod %s has an address of network %s", pod.Name, network), func(ctx context.Context) error {
		claims, err := w.claims(ctx, network)
		if err != nil {
			return err
		}
		for i := range claims {
			if claim := &claims[i]; claim.Status.PodUID == pod.UID && claim.Status.PodName == pod.Name && claim.Status.NodeName == node {
				if !meta.IsStatusConditionTrue(claim.Status.Conditions, v1alpha1.ConditionBound) {
					return fmt.Errorf("conditions %+v", claim.Status.Conditions)
				}
				out = claim
				return nil
			}
		}
		return fmt.Errorf("claims: %+v", claims)
	})
	return out
}

// awaitSays waits until a claim's condition is False for a reason, with a message.
func (w *world) awaitSays(name, reason, message string) *v1alpha1.IPClaim {
	w.t.Helper()
	var claim v1alpha1.IPClaim
	w.eventually(fmt.Sprintf("claim %s says %s", name, reason), func(ctx context.Context) error {
		if err := w.c.Get(ctx, client.ObjectKey{Name: name}, &claim); err != nil {
			return err
		}
		got := meta.FindStatusCondition(claim.Status.Conditions, v1alpha1.ConditionBound)
		if got == nil || got.Status != metav1.ConditionFalse || got.Reason != reason || !strings.Contains(got.Message, message) {
			return fmt.Errorf("condition is %+v", got)
		}
		return nil
	})
	return &claim
}

func (w *world) awaitGone(object client.Object) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%T %s is gone", object, object.GetName()), func(ctx context.Context) error {
		err := w.c.Get(ctx, client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there with finalizers %v: %w", object.GetFinalizers(), err)
	})
}

// stays watches for a while that a claim goes on being a pod's.
func (w *world) stays(claim *v1alpha1.IPClaim, pod *corev1.Pod, during time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(poll) {
		var now v1alpha1.IPClaim
		if err := w.c.Get(w.t.Context(), client.ObjectKeyFromObject(claim), &now); err != nil || now.Status.PodUID != pod.UID {
			w.t.Fatalf("the address is pod %q's (%s), not pod %q's any more: %v", now.Status.PodName, now.Status.PodUID, pod.UID, err)
		}
	}
}

// awaitEvent waits for an event about a pod, and returns how often it was told.
func (w *world) awaitEvent(pod *corev1.Pod, reason, message string) (times int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("event %s about pod %s", reason, pod.Name), func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := w.c.List(ctx, &list, client.InNamespace(pod.Namespace)); err != nil {
			return err
		}
		times = 0
		for i := range list.Items {
			e := &list.Items[i]
			if e.Regarding.UID == pod.UID && e.Reason == reason && strings.Contains(e.Note, message) {
				times++
				if e.Series != nil {
					times += int(e.Series.Count) - 1
				}
			}
		}
		if times == 0 {
			return fmt.Errorf("none among %d", len(list.Items))
		}
		return nil
	})
	return times
}

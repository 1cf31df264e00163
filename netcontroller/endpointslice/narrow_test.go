// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/endpointslice"
	sliceutil "k8s.io/endpointslice/util"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/netplane/netplane/api/v1alpha1"
)

// most is small, so that a few pods are in several slices.
const most = 5

// narrowed is one group, written by the library over an API server that counts
// generations as the real one does.
type narrowed struct {
	*reconciler
	clients *fake.Clientset
	group   group
	clock   *clocktesting.FakePassiveClock
	serial  int
	// generations are those of the slices by name.
	generations map[string]int64
}

func newNarrowed(t *testing.T) *narrowed {
	t.Helper()
	clients := fake.NewClientset()
	n := &narrowed{clients: clients, clock: clocktesting.NewFakePassiveClock(time.Now()), generations: map[string]int64{}}
	count := func(action k8stesting.Action) (bool, runtime.Object, error) {
		change, _ := action.(k8stesting.CreateAction) // an update is one, too
		slice, ok := change.GetObject().(*discoveryv1.EndpointSlice)
		if !ok {
			return false, nil, nil
		}
		if action.GetVerb() == "create" {
			n.serial++
			slice.UID, slice.Name = types.UID(fmt.Sprint("uid-", n.serial)), fmt.Sprint("slice-", n.serial)
		}
		// The library makes an update of what it would create where it would delete another.
		slice.UID = types.UID(strings.Replace(slice.Name, "slice", "uid", 1))
		n.generations[slice.Name]++
		slice.Generation = n.generations[slice.Name]
		return false, nil, nil
	}
	clients.PrependReactor("create", "endpointslices", count)
	clients.PrependReactor("update", "endpointslices", count)
	node := func(name, zone string) client.Object {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
	}
	reader := ctrlfake.NewClientBuilder().WithObjects(node("n0", "a"), node("n1", "b")).Build()
	tracker := sliceutil.NewEndpointSliceTracker()
	n.reconciler = &reconciler{
		client: reader, tracker: tracker, passes: newPasses(n.clock), most: most,
		slices: endpointslice.NewReconciler(clients, nodeLister{reader}, most, tracker, nil, &record.FakeRecorder{}, v1alpha1.EndpointSliceManagedBy),
	}
	n.group = group{network: "data", service: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "svc", Labels: map[string]string{v1alpha1.LabelNetwork: "data"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(80)}},
		},
	}}
	return n
}

// addPod adds a pod, which has two shadows.
func (n *narrowed) addPod(i int) {
	for _, ip := range []string{fmt.Sprintf("10.0.%d.%d", i/250, i%250), fmt.Sprintf("fd00::%x", i+1)} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("p", i), UID: types.UID(fmt.Sprint("uid-", i))},
			Spec:       corev1.PodSpec{NodeName: fmt.Sprint("n", i%2)},
		}
		n.group.pods = append(n.group.pods, shadowPod(pod, ip, true))
	}
}

// have are the slices of the API server.
func (n *narrowed) have(t *testing.T) []*discoveryv1.EndpointSlice {
	t.Helper()
	list, err := n.clients.DiscoveryV1().EndpointSlices("ns").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		out[i] = list.Items[i].DeepCopy()
	}
	return out
}

// write brings the group in line.
func (n *narrowed) write(t *testing.T) {
	t.Helper()
	if err := n.writeGroup(t.Context(), &n.group, n.have(t), n.zones(t.Context(), []group{n.group}), time.Time{}); err != nil {
		t.Fatal(err)
	}
}

// content is what the slices tell, without how they are cut.
func content(t *testing.T, all []*discoveryv1.EndpointSlice) map[string]discoveryv1.Endpoint {
	t.Helper()
	out := map[string]discoveryv1.Endpoint{}
	for _, slice := range all {
		if len(slice.Endpoints) > most {
			t.Errorf("slice %s has %d endpoints", slice.Name, len(slice.Endpoints))
		}
		for i := range slice.Endpoints {
			at := slice.Endpoints[i].Addresses[0]
			if _, twice := out[at]; twice {
				t.Errorf("%s is in two slices", at)
			}
			out[at] = slice.Endpoints[i]
		}
	}
	return out
}

// checkAgainst compares with what the library makes of all.
func (n *narrowed) checkAgainst(t *testing.T, whole *narrowed, what string) {
	t.Helper()
	whole.group, whole.passes = n.group, newPasses(whole.clock)
	whole.write(t)
	got, want := n.have(t), whole.have(t)
	if a, b := content(t, got), content(t, want); !equality.Semantic.DeepEqual(a, b) {
		t.Fatalf("after %s:\n%v\nwant\n%v", what, a, b)
	}
	isPlaceholder := func(slice *discoveryv1.EndpointSlice) bool { return len(slice.Ports) == 0 }
	if a, b := count(got, isPlaceholder), count(want, isPlaceholder); a != b {
		t.Fatalf("after %s: there are %d placeholders, want %d", what, a, b)
	}
	for _, slice := range got {
		if !maps.Equal(slice.Labels, want[0].Labels) || !isPlaceholder(slice) && *slice.Ports[0].Port != 80 {
			t.Fatalf("after %s: slice %s has the labels %v, want %v, and the ports %v", what, slice.Name, slice.Labels, want[0].Labels, slice.Ports)
		}
	}
}

func count[T any](all []T, is func(T) bool) int {
	return len(slices.DeleteFunc(slices.Clone(all), func(item T) bool { return !is(item) }))
}

// TestNarrowedWritesComeToTheSame: whatever happens to pods and slices, in any
// order, the library makes the same of what it is given as of all.
func TestNarrowedWritesComeToTheSame(t *testing.T) {
	whole := newNarrowed(t)
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1)) // #nosec G404 -- to be repeated
			n := newNarrowed(t)
			for i := range 13 {
				n.addPod(i)
			}
			n.write(t)
			n.checkAgainst(t, whole, "the start")
			for step := range 30 {
				what := n.happen(t, random, 100+step)
				n.write(t)
				n.checkAgainst(t, whole, fmt.Sprintf("step %d, %s", step, what))
			}
		})
	}
}

// happen changes something.
func (n *narrowed) happen(t *testing.T, random *rand.Rand, serial int) string {
	t.Helper()
	pods := n.group.pods
	n.group.pods = slices.Clone(pods)
	change := func(edit func(pod *corev1.Pod)) {
		for range 1 + random.IntN(3) {
			if len(pods) == 0 {
				return
			}
			at := random.IntN(len(pods))
			pod := *n.group.pods[at]
			edit(&pod)
			n.group.pods[at] = &pod
		}
	}
	switch random.IntN(10) {
	case 0:
		n.addPod(serial)
		return "a pod came"
	case 1, 2:
		for range min(len(n.group.pods), 1+random.IntN(6)) {
			at := random.IntN(len(n.group.pods))
			n.group.pods = slices.Delete(n.group.pods, at, at+1)
		}
		return "pods went"
	case 3, 4:
		change(func(pod *corev1.Pod) {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse}[random.IntN(2)]}}
		})
		return "readiness"
	case 5:
		change(func(pod *corev1.Pod) { pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} })
		return "pods terminate"
	case 6:
		change(func(pod *corev1.Pod) { pod.Spec.Hostname, pod.Spec.Subdomain = "host", "web" })
		return "host names"
	case 7:
		service := *n.group.service
		service.Labels = map[string]string{v1alpha1.LabelNetwork: "data", "round": fmt.Sprint(serial)}
		service.Spec.PublishNotReadyAddresses = random.IntN(2) == 0
		n.group.service = &service
		return "the Service"
	case 8:
		return n.tamper(t, random)
	default:
		return "nothing"
	}
}

// tamper changes a slice as somebody else does.
func (n *narrowed) tamper(t *testing.T, random *rand.Rand) string {
	t.Helper()
	all := n.have(t)
	slice := all[random.IntN(len(all))]
	api := n.clients.DiscoveryV1().EndpointSlices("ns")
	var err error
	what := "a slice's labels"
	switch random.IntN(4) {
	case 0:
		slice.Labels["foreign"] = "yes"
		_, err = api.Update(t.Context(), slice, metav1.UpdateOptions{})
	case 1:
		what = "a slice's ports"
		slice.Ports = []discoveryv1.EndpointPort{{Port: ptr.To[int32](81)}}
		_, err = api.Update(t.Context(), slice, metav1.UpdateOptions{})
	case 2:
		what = "a slice's endpoints"
		slice.Endpoints = nil
		_, err = api.Update(t.Context(), slice, metav1.UpdateOptions{})
	default:
		what = "a slice that is gone"
		err = api.Delete(t.Context(), slice.Name, metav1.DeleteOptions{})
		n.tracker.HandleDeletion(slice)
	}
	if err != nil {
		t.Fatal(err)
	}
	return what
}

// TestOneChangeConcernsOneSlice: of each family the library is given one slice
// with its pods, and nothing where nothing has changed.
func TestOneChangeConcernsOneSlice(t *testing.T) {
	n := newNarrowed(t)
	for i := range 50 {
		n.addPod(i)
	}
	by := narrowing{most: most, zoneOf: n.zones(t.Context(), []group{n.group}), isLeft: n.isLeft}
	n.write(t)
	if _, some, ok := narrow(&n.group, n.have(t), by); !ok || len(some) > 0 {
		t.Errorf("unchanged: %d slices, %t", len(some), ok)
	}
	pod := *n.group.pods[7]
	pod.Status.Conditions = nil
	n.group.pods[7] = &pod
	pods, some, ok := narrow(&n.group, n.have(t), by)
	if !ok || len(some) != 2 || len(pods) != 2*most {
		t.Errorf("after a change: %d slices with %d pods, %t", len(some), len(pods), ok)
	}
	n.clock.SetTime(n.clock.Now().Add(passLasts))
	if n.passes.holds(&n.group) {
		t.Error("the library need never see all again")
	}
}

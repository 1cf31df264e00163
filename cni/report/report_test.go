// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/klog/v2/ktesting"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

var podName = types.NamespacedName{Namespace: "prod", Name: "web"}

func pod(uid types.UID) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: podName.Namespace, Name: podName.Name, UID: uid, Annotations: map[string]string{"own": "kept"}}}
}

// server is an API server whose pods/status writes fail as fail says.
type server struct {
	client.WithWatch

	mu      sync.Mutex
	patches []string
	fail    func(try int) error
}

func newServer(fail func(try int) error, pods ...client.Object) *server {
	s := &server{fail: fail}
	s.WithWatch = fake.NewClientBuilder().WithObjects(pods...).WithStatusSubresource(&corev1.Pod{}).
		WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: s.patch}).Build()
	return s
}

// patch writes the annotations as the API server's pods/status does, which the
// fake client's status subresource would leave out.
func (s *server) patch(ctx context.Context, c client.Client, sub string, obj client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	raw, err := patch.Data(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.patches = append(s.patches, sub+" "+string(raw))
	try := len(s.patches)
	s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(try); err != nil {
			return err
		}
	}
	return c.Patch(ctx, obj, patch)
}

func (s *server) writes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.patches...)
}

func (s *server) annotations(t *testing.T) map[string]string {
	t.Helper()
	var p corev1.Pod
	if err := s.Get(t.Context(), podName, &p); err != nil {
		t.Fatal(err)
	}
	return p.Annotations
}

func run(t *testing.T, r *Reporter) {
	t.Helper()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func drained(t *testing.T, r *Reporter) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); r.Pending() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d reports are still pending", r.Pending())
		}
	}
}

func attachment(ip string) []podnetworks.Attachment {
	return []podnetworks.Attachment{{Name: "management", Interface: "eth0", IPs: []string{ip}, Default: true}}
}

const statusOf5 = `[{"name":"management","interface":"eth0","ips":["10.10.0.5"],"default":true}]`

// What cannot be told of a sandbox of an earlier version is left as it is.
func TestWhatIsAttachedIsCountedWhereItIsKnown(t *testing.T) {
	s := newServer(nil, pod("u1"))
	r := New(s, s)
	run(t, r)
	for _, step := range []struct {
		uses []podnetworks.Use
		want string
	}{
		{nil, "absent"},
		{[]podnetworks.Use{{Network: "data", Addresses: 1}, {Network: "management", Fixed: 1}}, "data=1,management=0+1"},
		{nil, "data=1,management=0+1"},
		{[]podnetworks.Use{}, ""},
	} {
		r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), step.uses)
		drained(t, r)
		got, ok := s.annotations(t)[v1alpha1.AnnotationAttached]
		if !ok {
			got = "absent"
		}
		if got != step.want {
			t.Errorf("after %v: %q, want %q", step.uses, got, step.want)
		}
	}
	if got := len(s.writes()); got != 3 {
		t.Errorf("%d writes, want one for each change", got)
	}
}

func TestAttachedIsWrittenToPodsStatusWithTheUID(t *testing.T) {
	s := newServer(nil, pod("u1"))
	r := New(s, s)
	r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), nil)
	run(t, r)
	drained(t, r)

	want := map[string]string{"own": "kept", v1alpha1.AnnotationNetworkStatus: statusOf5, v1alpha1.AnnotationNetworkStatusSandbox: "sandbox-1"}
	if diff := cmp.Diff(want, s.annotations(t)); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	wantPatch := []string{`status {"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[{\"name\":\"management\",\"interface\":\"eth0\",\"ips\":[\"10.10.0.5\"],\"default\":true}]","netplane.io/network-status-sandbox":"sandbox-1"},"uid":"u1"}}`}
	if diff := cmp.Diff(wantPatch, s.writes()); diff != "" {
		t.Errorf("patches (-want +got):\n%s", diff)
	}
}

func TestOnlyTheNewestSandboxIsWritten(t *testing.T) {
	s := newServer(nil, pod("u1"))
	r := New(s, s)
	r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.4"), nil)
	r.Attached(podName, "u1", "sandbox-2", attachment("10.10.0.5"), nil)
	r.Detached("u1", "sandbox-1")
	run(t, r)
	drained(t, r)

	if got := s.annotations(t)[v1alpha1.AnnotationNetworkStatusSandbox]; got != "sandbox-2" {
		t.Errorf("sandbox %q is reported, want sandbox-2", got)
	}
	if n := len(s.writes()); n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
}

func TestDetachedBeforeTheWriteIsNotWritten(t *testing.T) {
	s := newServer(nil, pod("u1"))
	r := New(s, s)
	r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), nil)
	r.Detached("u1", "sandbox-1")
	// The queue is first in, first out: when this one is written, the first was passed over.
	r.Attached(podName, "u2", "sandbox-2", attachment("10.10.0.6"), nil)
	run(t, r)
	drained(t, r)
	writes := s.writes()
	if len(writes) == 0 {
		t.Error("the other pod was not reported")
	}
	for _, w := range writes {
		if strings.Contains(w, `"uid":"u1"`) {
			t.Errorf("written although detached: %s", w)
		}
	}
}

func TestSameAnnotationsAreNotWrittenAgain(t *testing.T) {
	p := pod("u1")
	p.Annotations[v1alpha1.AnnotationNetworkStatus] = statusOf5
	p.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] = "sandbox-1"
	s := newServer(nil, p)
	r := New(s, s)
	r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), nil)
	run(t, r)
	drained(t, r)
	if got := s.writes(); len(got) > 0 {
		t.Errorf("writes: %q, want none", got)
	}
}

func TestFailedWritesAreRepeated(t *testing.T) {
	for name, failure := range map[string]error{
		"API server away": errors.New("connection refused"),
		"refused for now": apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, podName.Name, errors.New("policy not there yet")),
		"overloaded":      apierrors.NewTooManyRequests("slow down", 1),
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(func(try int) error {
				if try < 3 {
					return failure
				}
				return nil
			}, pod("u1"))
			r := New(s, s)
			run(t, r)
			r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), nil)
			drained(t, r)
			if got := s.annotations(t)[v1alpha1.AnnotationNetworkStatus]; got != statusOf5 {
				t.Errorf("status %q, want %q", got, statusOf5)
			}
		})
	}
}

func TestPodsThatAreGoneAreForgotten(t *testing.T) {
	t.Run("deleted", func(t *testing.T) {
		s := newServer(nil)
		r := New(s, s)
		run(t, r)
		r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), nil)
		drained(t, r)
		if n := len(s.writes()); n != 1 {
			t.Errorf("%d writes, want 1", n)
		}
	})
	immutable := field.Invalid(field.NewPath("metadata", "uid"), "u1", "field is immutable")
	for name, test := range map[string]struct {
		err    error
		writes int
	}{
		"replaced by one of the same name": {apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, podName.Name, field.ErrorList{immutable}), 1},
		"in conflict again and again":      {apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, podName.Name, errors.New("the object has been modified")), conflictTries + 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(func(int) error { return test.err }, pod("u2"))
			r := New(s, s)
			run(t, r)
			r.Attached(podName, "u1", "sandbox-1", attachment("10.10.0.5"), nil)
			drained(t, r)
			if n := len(s.writes()); n != test.writes {
				t.Errorf("%d writes, want %d", n, test.writes)
			}
			if got := s.annotations(t)[v1alpha1.AnnotationNetworkStatus]; got != "" {
				t.Errorf("the other pod got status %q", got)
			}
		})
	}
}

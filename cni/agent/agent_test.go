// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	toolscache "k8s.io/client-go/tools/cache"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/inventory"
	"github.com/netplane/netplane/cni/serviceproxy"
)

// What the parts want of each other, where the compiler would otherwise tell
// only at the place of wiring.
var (
	_ attach.Networks      = networks{}
	_ attach.Namespaces    = (*namespaces)(nil)
	_ attach.Pods          = pods{}
	_ inventory.HeldSource = held{}
	_ attach.Topology      = (*inventory.Snapshot)(nil)
	_ serviceproxy.Watch   = services{}
)

func TestOptionsSayEverythingThatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"defaults with a node name": {args: []string{"--node-name=worker.example"}},
		"no node name":              {want: "--node-name is missing: give it, or set NODE_NAME from the pod's spec.nodeName"},
		"bad node name":             {args: []string{"--node-name=Worker_1"}, want: `--node-name "Worker_1" is no Node's name: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`},
		"relative paths": {
			args: []string{"--node-name=w", "--state-dir=run", "--map-file="},
			want: "--state-dir \"run\" must be an absolute path\n--map-file \"\" must be an absolute path",
		},
		"state dir too long for a socket": {
			args: []string{"--node-name=w", "--state-dir=/" + strings.Repeat("d", 100)},
			want: "--state-dir is too long: the socket's path /" + strings.Repeat("d", 100) + "/agent.sock has 112 bytes, and the kernel allows 107",
		},
		"bad service CIDR": {args: []string{"--node-name=w", "--service-cidr=10.96.0.0"}, want: `--service-cidr "10.96.0.0" must be a CIDR, such as 10.96.0.0/12`},
		"bad pod CIDR":     {args: []string{"--node-name=w", "--pod-cidr=10.244"}, want: `--pod-cidr "10.244" must be a CIDR, such as 10.96.0.0/12`},
		"no requests":      {args: []string{"--node-name=w", "--kube-api-qps=0"}, want: "--kube-api-qps 0 and --kube-api-burst 100 must be above 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(nodeNameVariable, "")
			opts := defaultOptions()
			flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
			opts.addFlags(flags)
			if err := flags.Parse(test.args); err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := opts.validate(); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNodeNameComesFromTheEnvironment(t *testing.T) {
	t.Setenv(nodeNameVariable, "worker2")
	if got := defaultOptions().nodeName; got != "worker2" {
		t.Errorf("node name %q, want worker2", got)
	}
}

func testPod(phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "prod", Name: "web", UID: "u1", ResourceVersion: "7", Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{v1alpha1.AnnotationNetworks: "data@eth1", "else": "dropped"},
		},
		Spec:   corev1.PodSpec{NodeName: "worker", SchedulerName: "netplane-scheduler", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{Phase: phase, PodIP: "10.10.0.5"},
	}
}

func TestCachesKeepOnlyWhatIsRead(t *testing.T) {
	got, err := slimPod(testPod(corev1.PodRunning))
	if err != nil {
		t.Fatal(err)
	}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "prod", Name: "web", UID: "u1", ResourceVersion: "7",
			Annotations: map[string]string{v1alpha1.AnnotationNetworks: "data@eth1"},
		},
		Spec:   corev1.PodSpec{NodeName: "worker", SchedulerName: "netplane-scheduler"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}

	gotNode, err := slimNode(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "worker", UID: "n1", Labels: map[string]string{"rack": "a"}, Annotations: map[string]string{"a": "b"}},
		Status:     corev1.NodeStatus{Images: []corev1.ContainerImage{{SizeBytes: 1}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker", UID: "n1", Labels: map[string]string{"rack": "a"}}}, gotNode); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}

	tombstone := toolscache.DeletedFinalStateUnknown{Key: "prod/web"}
	if got, err := slimPod(tombstone); err != nil || got != any(tombstone) {
		t.Errorf("what is no pod came back as %v, %v", got, err)
	}
}

func TestLivingPodsAreThoseThatTheSchedulerCounts(t *testing.T) {
	changes := 0
	l := newLivingPods(testingclock.NewFakeClock(time.Now()), func() { changes++ })
	for _, step := range []struct {
		name        string
		do          func()
		alive       bool
		wantChanges int
	}{
		{"never seen", func() {}, false, 0},
		{"added", func() { l.set(testPod(corev1.PodPending), true) }, true, 1},
		{"running", func() { l.set(testPod(corev1.PodRunning), true) }, true, 1},
		{"succeeded", func() { l.set(testPod(corev1.PodSucceeded), true) }, false, 2},
		{"failed", func() { l.set(testPod(corev1.PodFailed), true) }, false, 2},
		{"running again is another story, but told", func() { l.set(testPod(corev1.PodRunning), true) }, true, 3},
		{"deleted", func() { l.set(testPod(corev1.PodRunning), false) }, false, 4},
		{"something else", func() { l.set("no pod", true) }, false, 4},
	} {
		step.do()
		if got := l.counts("u1"); got != step.alive {
			t.Errorf("%s: alive %t, want %t", step.name, got, step.alive)
		}
		if changes != step.wantChanges {
			t.Errorf("%s: %d changes told, want %d", step.name, changes, step.wantChanges)
		}
	}
}

// kubelet hears of a pod by a watch of its own.
func TestAPodThatIsStartedBeforeTheWatchTellsOfItHoldsNothing(t *testing.T) {
	now, changes := testingclock.NewFakeClock(time.Now()), 0
	l := newLivingPods(now, func() { changes++ })
	expect := func(when string, want bool, wantChanges int) {
		t.Helper()
		counts, done := l.round()
		defer done()
		if got := counts("u1"); got != want || changes != wantChanges {
			t.Errorf("%s: counts %t after %d changes, want %t after %d", when, got, changes, want, wantChanges)
		}
	}
	expect("an address of the last agent's time", false, 0)
	l.serve()
	expect("that pod, later", false, 0)
	forget := func() { _, done := l.round(); done() }
	forget()
	expect("a pod that the watch has not told of", true, 0)
	now.Step(podLag - time.Millisecond)
	expect("the same, shortly after", true, 0)
	now.Step(time.Millisecond)
	expect("the same, after the lag", false, 1)
	l.set(testPod(corev1.PodRunning), true)
	expect("the same, when it came after all", true, 2)
	l.set(testPod(corev1.PodRunning), false)
	expect("a pod that was deleted", false, 3)
	now.Step(podLag)
	expect("the same, later", false, 3)
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), networkingv1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return scheme
}

func TestAdaptersReadTheCaches(t *testing.T) {
	reader := client.Reader(fake.NewClientBuilder().WithScheme(newScheme(t)).WithObjects(
		&v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}},
		testPod(corev1.PodRunning),
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd00:10:96::/112"}}},
		&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}}},
	).Build())

	if n, ok := (networks{reader}).Get("data"); !ok || n.Name != "data" {
		t.Errorf("network: %v, %t", n, ok)
	}
	if _, ok := (networks{reader}).Get("absent"); ok {
		t.Error("a network that does not exist was found")
	}
	if annotations, ok := (pods{reader}).Annotations("prod", "web"); !ok || annotations[v1alpha1.AnnotationNetworks] != "data@eth1" {
		t.Errorf("annotations: %v, %t", annotations, ok)
	}
	if _, ok := (pods{reader}).Annotations("prod", "absent"); ok {
		t.Error("a pod that does not exist was found")
	}
	comparePrefix := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	want := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	if diff := cmp.Diff(want, serviceCIDRs{reader: reader}.list(), comparePrefix); diff != "" {
		t.Errorf("service CIDRs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[:1], serviceCIDRs{reader: reader, fixed: want[:1]}.list(), comparePrefix); diff != "" {
		t.Errorf("service CIDRs of the flag (-want +got):\n%s", diff)
	}
}

func TestReadinessFollowsTheSocket(t *testing.T) {
	a := &agent{socket: filepath.Join(t.TempDir(), "agent.sock")}
	request := httptest.NewRequest("GET", "/readyz", nil)
	if err := a.ready(request); err == nil || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("while starting: %v", err)
	}
	a.serving.Store(true)
	if err := a.ready(request); err == nil || !strings.Contains(err.Error(), "the CNI socket does not answer") {
		t.Errorf("without a socket: %v", err)
	}
	listener, err := net.Listen("unix", a.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if err := a.ready(request); err != nil {
		t.Errorf("with a socket: %v", err)
	}
}

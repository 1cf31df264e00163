// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// talkPort is where pods answer UDP packets with their name.
const talkPort = 9090

// TestClusterIPsOverAnIsolatedNetwork has a Service with a ClusterIP over a
// network that no node reaches.
func TestClusterIPsOverAnIsolatedNetwork(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, "e2e-calls", v1alpha1.NetworkSpec{
		PhysicalNet: physData, Plugin: v1alpha1.PluginVXLAN, Subnet: "10.172.0.0/24", Subnet6: "fd00:10:172::/64",
		ServiceProxy: v1alpha1.ServiceProxyInPod,
	})
	awaitNetwork(t, n.Name, metav1.ConditionTrue, v1alpha1.ReasonReady)
	ns := namespace(t)
	svc := newService(ns, "calls")
	svc.Annotations[v1alpha1.AnnotationNetworks] = n.Name
	svc.Spec.ClusterIP = ""
	svc.Spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromInt32(webPort)},
		{Name: "talk", Port: 80, TargetPort: intstr.FromInt32(talkPort), Protocol: corev1.ProtocolUDP},
	}
	if err := env.client.Create(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	if len(svc.Spec.ClusterIPs) != 2 {
		t.Fatalf("the Service has the ClusterIPs %v, want both families", svc.Spec.ClusterIPs)
	}
	stranger := enter(t, run(t, newPod(ns, "stranger", "", on(env.node("worker")))))
	b := enter(t, run(t, newPod(ns, "client", n.Name, on(env.node("worker")))))
	b.mustBeRefused(t, "before there are endpoints", svc)

	var names []string
	pods := map[string]*corev1.Pod{}
	for _, suffix := range []string{"worker", "worker3"} {
		pod := run(t, newPod(ns, "calls-"+suffix, n.Name, on(env.node(suffix)), labelled("app", "calls")))
		enter(t, pod).talk(t)
		pods[pod.Name], names = pod, append(names, pod.Name)
	}
	b.wantAnswers(t, svc, names, false)
	awaitPublished(t, svc)
	awaitNames(t, b, "calls."+ns+".svc.cluster.local", svc.Spec.ClusterIPs)
	out, err := b.sh(t, "wget -q -O - -T 3 http://calls."+ns+".svc.cluster.local/")
	if err != nil || !slices.Contains(names, strings.TrimSpace(out)) {
		t.Errorf("by the Service's name: %q (%v)", out, err)
	}
	stranger.mustBeRefused(t, "for a pod that is not on the network", svc)

	t.Run("hairpin", func(t *testing.T) { enter(t, pods[names[0]]).wantAnswers(t, svc, names, false) })
	t.Run("affinity", func(t *testing.T) {
		before := svc.DeepCopy()
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		if err := env.client.Patch(t.Context(), svc, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		b.wantAnswers(t, svc, names, true)
	})
	t.Run("restart", func(t *testing.T) {
		killAgent(t, b.node)
		b.wantAnswers(t, svc, names, true)
		replaceAgent(t, b.node)
		b.wantAnswers(t, svc, names, true)
	})
	t.Run("endpoints that go", func(t *testing.T) {
		if err := env.client.Delete(t.Context(), pods[names[0]]); err != nil {
			t.Fatal(err)
		}
		b.wantAnswers(t, svc, names[1:], true)
		if err := env.client.Delete(t.Context(), pods[names[1]]); err != nil {
			t.Fatal(err)
		}
		b.mustBeRefused(t, "without endpoints", svc)
	})
}

// Of the nodes' programs Perl alone speaks UDP and IPv6 without a framework: bash
// reads a packet's first byte only, socat waits after the answer.
const (
	talkServer = `socket(S, AF_INET6, SOCK_DGRAM, 0); setsockopt(S, IPPROTO_IPV6, IPV6_V6ONLY, 0); bind(S, pack_sockaddr_in6($ARGV[0], IN6ADDR_ANY)) or die $!;
while (defined($from = recv(S, $_, 64, 0))) { send(S, $ARGV[1], 0, $from) }`
	talkClient = `my ($err, $to) = getaddrinfo($ARGV[0], $ARGV[1], {socktype => SOCK_DGRAM}); die $err if $err;
socket(S, $to->{family}, SOCK_DGRAM, 0); connect(S, $to->{addr}) or die $!; alarm 3;
defined send(S, "who", 0) or die $!; defined recv(S, $_, 64, 0) or die $!; print`
)

// talk has the pod answer UDP packets, by a process that ends with it.
func (b box) talk(t *testing.T) {
	t.Helper()
	mustOnNode(t, b.node, "sh", "-c", `"$@" >/dev/null 2>&1 &`, "sh", "nsenter", "--target", strconv.Itoa(b.pid), "--net", "--pid",
		"perl", "-MSocket=:all", "-e", talkServer, strconv.Itoa(talkPort), b.pod.Name)
}

// ask asks a Service's address once, by a connection of its own, and returns the
// name of the pod that answers.
func (b box) ask(t *testing.T, protocol corev1.Protocol, address string) (string, error) {
	t.Helper()
	if protocol == corev1.ProtocolUDP {
		return onNode(t.Context(), b.node, "", "nsenter", "--target", strconv.Itoa(b.pid), "--net",
			"perl", "-MSocket=:all", "-e", talkClient, address, "80")
	}
	out, err := b.sh(t, fmt.Sprintf("wget -q -O - -T 3 http://%s/", net.JoinHostPort(address, "80")))
	return strings.TrimSpace(out), err
}

// wantAnswers waits until the Service is answered, by both protocols and in both
// families, by all of these pods, or by one of them only.
func (b box) wantAnswers(t *testing.T, svc *corev1.Service, names []string, sticky bool) {
	t.Helper()
	for _, address := range svc.Spec.ClusterIPs {
		for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
			eventually(t, 30*time.Second, fmt.Sprintf("%s %s to be answered by %v in pod %s (sticky: %t)", protocol, address, names, b.pod.Name, sticky), func() error {
				got := map[string]int{}
				for range 16 {
					name, err := b.ask(t, protocol, address)
					if err != nil {
						return err
					}
					if !slices.Contains(names, name) {
						return fmt.Errorf("%q answers", name)
					}
					got[name]++
				}
				if want := map[bool]int{false: len(names), true: 1}[sticky]; len(got) != want {
					return fmt.Errorf("answered by %v", got)
				}
				return nil
			})
		}
	}
}

// mustBeRefused waits until the Service's ports are refused, at once.
func (b box) mustBeRefused(t *testing.T, when string, svc *corev1.Service) {
	t.Helper()
	for _, address := range svc.Spec.ClusterIPs {
		eventually(t, 30*time.Second, fmt.Sprintf("%s to be refused %s", address, when), func() error {
			name, err := b.ask(t, corev1.ProtocolTCP, address)
			if err == nil {
				return fmt.Errorf("%q answers", name)
			}
			if !strings.Contains(err.Error(), "refused") {
				return err
			}
			return nil
		})
	}
}

// awaitPublished: the Service has nothing to complain of.
func awaitPublished(t *testing.T, svc *corev1.Service) {
	t.Helper()
	eventually(t, 20*time.Second, "the Service's condition", func() error {
		var now corev1.Service
		if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(svc), &now); err != nil {
			return err
		}
		for _, c := range now.Status.Conditions {
			if c.Type == v1alpha1.ConditionEndpointsByNetwork && c.Status == metav1.ConditionTrue && c.Reason == v1alpha1.ReasonEndpointsPublished {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", now.Status.Conditions)
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"github.com/netplane/netplane/api/v1alpha1"
)

// balancer is a consumer of a Service's slices, as kube-proxy is one: it
// watches them, and knows at any moment which endpoints are ready.
type balancer struct {
	mu     sync.Mutex
	slices map[string]*discoveryv1.EndpointSlice
}

func newBalancer(ctx context.Context, t *testing.T, ns, service string) *balancer {
	t.Helper()
	b := &balancer{slices: map[string]*discoveryv1.EndpointSlice{}}
	options := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service}
	list, err := env.clientset.DiscoveryV1().EndpointSlices(ns).List(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		b.slices[list.Items[i].Name] = &list.Items[i]
	}
	options.ResourceVersion = list.ResourceVersion
	events, err := env.clientset.DiscoveryV1().EndpointSlices(ns).Watch(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(events.Stop)
	go func() {
		for event := range events.ResultChan() {
			slice, ok := event.Object.(*discoveryv1.EndpointSlice)
			if !ok {
				return
			}
			b.mu.Lock()
			if event.Type == watch.Deleted {
				delete(b.slices, slice.Name)
			} else {
				b.slices[slice.Name] = slice
			}
			b.mu.Unlock()
		}
	}()
	return b
}

// ready are the ready endpoints' addresses on a network; every network's if it
// is empty.
func (b *balancer) ready(network string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, slice := range b.slices {
		if network != "" && slice.Labels[v1alpha1.LabelNetwork] != network {
			continue
		}
		for _, e := range slice.Endpoints {
			if ptr.Deref(e.Conditions.Ready, false) {
				out = append(out, e.Addresses...)
			}
		}
	}
	return out
}

// traffic asks endpoints until it is stopped.
type traffic struct {
	stop     func()
	asked    int
	failures []string
}

// flows are by what they go by.
type flows map[string]*traffic

func (f flows) check(t *testing.T) {
	t.Helper()
	for _, what := range keys(f) {
		f[what].check(t, what)
	}
}

const (
	// askAtOnce is how many requests one command makes: to enter a pod takes longer
	// than all of them.
	askAtOnce = 10
	// askPause leaves something of a small machine to what is tested.
	askPause = 200 * time.Millisecond
	// fetch asks $at, which is an address with its port, and tells who did not
	// answer, when it was asked, and what came instead. It waits for as long as a
	// machine that is starting pods with all its cores may take; what is gone
	// refuses at once, or never answers.
	fetch = `began=$(date +%T); why=$(wget -q -O /dev/null -T 10 "http://$at/" 2>&1) || echo "$at, asked at $began: $why"`
)

// send has the pod ask, again and again, some of the addresses of that moment.
// Each request that is not answered is a failure, and so is each moment without
// an address.
func send(t *testing.T, from box, of func() []string) *traffic {
	return keepAsking(t, from, func() string {
		addresses := of()
		if len(addresses) == 0 {
			return "echo there is no address; sleep 0.1"
		}
		script := "for at in"
		for range askAtOnce {
			address := netip.MustParseAddr(addresses[rand.IntN(len(addresses))]) // #nosec G404 -- no secret
			script += " " + netip.AddrPortFrom(address, webPort).String()
		}
		return script + "; do " + fetch + "; done"
	})
}

// sendByName has the pod look a name up for every request, as a client does that
// keeps no connection, and ask any one of the addresses. CoreDNS answers for the
// cluster's own names from what it watches, without its cache (kubeadm's Corefile
// says "disable success" and "disable denial" of them). So an address is as old
// as CoreDNS's view and the moment until it is asked, and the pods have to
// serve for longer than that after they were told to end: see deployment. A
// client that keeps an answer for its TTL, 30 s, needs pods that serve for 30 s.
func sendByName(t *testing.T, from box, name string) *traffic {
	// The server's own address comes with a tab, and so is left out. Not all libcs
	// take turns; the answers' order and the shell's number both do.
	script := fmt.Sprintf(`for i in $(seq %d); do
  to=$(nslookup %s 2>/dev/null | awk -v n="$RANDOM" '/^Address( [0-9]+)?: /{a[c++]=$NF} END{if (c) print a[n%%c]}')
  case "$to" in "") echo no address of %[2]s; continue;; *:*) at="[$to]:%[3]d";; *) at="$to:%[3]d";; esac
  %[4]s
done`, askAtOnce, name, webPort, fetch)
	return keepAsking(t, from, func() string { return script })
}

// keepAsking has the pod run scripts that make askAtOnce requests each, and
// print a line for each that failed.
func keepAsking(t *testing.T, from box, script func() string) *traffic {
	ctx, cancel := context.WithCancel(t.Context())
	out := &traffic{}
	done := make(chan struct{})
	fail := func(what string) { out.failures = append(out.failures, time.Now().Format("05.000 ")+what) }
	go func() {
		defer close(done)
		for ; ctx.Err() == nil; time.Sleep(askPause) {
			failed, err := from.sh(t, script())
			if ctx.Err() != nil {
				return // it may have been interrupted
			}
			if err != nil {
				fail(err.Error())
				continue
			}
			out.asked += askAtOnce
			for line := range strings.Lines(failed) {
				fail(strings.TrimSpace(line))
			}
		}
	}()
	out.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(out.stop)
	return out
}

// leastRequests is what the slowest machine manages while a Service moves: each
// request is a process, and what counts is that the next one follows at once.
const leastRequests = 10

// check ends the traffic; every request must have been answered.
func (f *traffic) check(t *testing.T, what string) {
	t.Helper()
	f.stop()
	t.Logf("%s: %d requests", what, f.asked)
	if len(f.failures) > 0 || f.asked < leastRequests {
		t.Errorf("%s: %d failures in %d requests:\n%s", what, len(f.failures), f.asked, strings.Join(f.failures[:min(10, len(f.failures))], "\n"))
	}
}

// serves is how long a pod goes on serving after it was told to end.
const serves = 15 * time.Second

// deployment has pods that go on serving for a while after they were told to end, as
// pods behind any Service have to: kube-proxy, CoreDNS and who asked it learn
// later that they left the slices.
func deployment(ns, name, networks string, replicas int32) *appsv1.Deployment {
	pod := newPod(ns, name, networks, labelled("app", name))
	delete(pod.Labels, "pod")
	pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(serves/time.Second) + 3)
	web := &pod.Spec.Containers[0]
	web.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: int64(serves / time.Second)}}}
	web.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"wget", "-q", "-O", "-", fmt.Sprintf("http://127.0.0.1:%d/", webPort)}}}}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Strategy: appsv1.DeploymentStrategy{RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(3))}},
			Template: template(pod),
		},
	}
}

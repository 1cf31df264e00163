// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// sink is an API server that takes events.
type sink chan string

func (s sink) Create(_ context.Context, event *eventsv1.Event) (*eventsv1.Event, error) {
	s <- event.Note
	return event, nil
}

func (s sink) Update(_ context.Context, event *eventsv1.Event) (*eventsv1.Event, error) {
	s <- "updated"
	return event, nil
}

func (s sink) Patch(_ context.Context, event *eventsv1.Event, _ []byte) (*eventsv1.Event, error) {
	s <- "counted"
	return event, nil
}

func (s sink) next(t *testing.T) string {
	t.Helper()
	select {
	case note := <-s:
		return note
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return ""
	}
}

// TestEventsAfterAChangeOfThePodAreTold: the recorder takes events of one pod and
// reason for one, whatever they say, as long as the pod's version is the same.
func TestEventsAfterAChangeOfThePodAreTold(t *testing.T) {
	scheme := newScheme(t)
	pod := testPod(corev1.PodRunning)
	store := fake.NewClientBuilder().WithScheme(scheme).WithObjects(pod).Build()
	got := make(sink, 10)
	broadcaster := events.NewBroadcaster(got)
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := running{cached: store, live: store, recorder: broadcaster.NewRecorder(scheme, "agent")}
	refuse := func(note string) string {
		t.Helper()
		r.Refused(client.ObjectKeyFromObject(pod), pod.UID, note)
		return got.next(t)
	}
	told := []string{refuse("no NIC"), refuse("no NIC")}
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, "some", "change")
	if err := store.Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	told = append(told, refuse("no address"))
	if diff := cmp.Diff([]string{"no NIC", "counted", "no address"}, told); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

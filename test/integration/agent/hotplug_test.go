// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// ask changes the annotation of a pod.
func (w *world) ask(s *sandbox, networks string) {
	w.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationNetworks, networks)
	w.must(w.client.Patch(w.Context(), s.pod, client.RawPatch(types.MergePatchType, []byte(patch))))
}

// awaitLinks waits until a pod has eth2 of the kind and with the addresses that
// eth2 begins with, or none, and is said to have what attached says.
func (w *world) awaitLinks(s *sandbox, eth2, attached string) {
	w.Helper()
	w.await(fmt.Sprintf("eth2 to be %q", eth2), func() error {
		_, got, _ := strings.Cut(w.interfaces(s), "; ")
		var pod corev1.Pod
		if err := w.client.Get(w.Context(), client.ObjectKeyFromObject(s.pod), &pod); err != nil {
			return err
		}
		told := pod.Annotations[v1alpha1.AnnotationNetworkStatus]
		if !strings.HasPrefix(got, eth2) || eth2 == "" && got != "" || strings.Contains(told, `"eth2"`) != (eth2 != "") || pod.Annotations[v1alpha1.AnnotationAttached] != attached {
			return fmt.Errorf("the pod has %q, annotations %v", got, pod.Annotations)
		}
		return nil
	})
	// The runtime compares with what the ADD answered; that stands yet.
	if err := s.cni.CheckNetworkList(w.Context(), s.list, s.runtime); err != nil {
		w.Errorf("CHECK with eth2 %q: %v", eth2, err)
	}
}

func (w *world) awaitEvent(s *sandbox, reason, words string) {
	w.Helper()
	w.await("event "+reason, func() error {
		var events eventsv1.EventList
		if err := w.client.List(w.Context(), &events, client.InNamespace(s.pod.Namespace)); err != nil {
			return err
		}
		var notes []string
		for i := range events.Items {
			if e := &events.Items[i]; e.Regarding.UID == s.pod.UID {
				if e.Reason == reason && strings.Contains(e.Note, words) {
					return nil
				}
				notes = append(notes, e.Reason+": "+e.Note)
			}
		}
		return fmt.Errorf("there are %q", notes)
	})
}

// testHotPlug changes the annotation of a pod that runs.
func testHotPlug(w *world) {
	const eth0 = "management@eth0"
	pod := w.newSandbox("plugged", eth0)
	if _, err := w.add(pod); err != nil {
		w.Fatal(err)
	}
	w.awaitLinks(pod, "", "management=1")
	w.ask(pod, eth0+",data@eth2")
	w.awaitLinks(pod, "eth2 veth 10.20.", "data=1,management=1")
	w.awaitEvent(pod, v1alpha1.EventHotPlugged, `added eth2 on network "data"`)

	w.ask(pod, eth0+",late@eth2")
	w.awaitEvent(pod, v1alpha1.EventHotPlugRefused, `interface eth2 is not changed yet: network "late" does not exist`)
	w.awaitLinks(pod, "eth2 veth 10.20.", "data=1,management=1") // what it has stays until then
	w.network("late", v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.30.0.0/16"})
	w.awaitLinks(pod, "eth2 macvlan 10.30.", "late=1,management=1")

	// What changes while no agent serves is found by the next one.
	w.must(w.process.Process.Kill())
	<-w.ended //nolint:errcheck // it was killed: how it ended says nothing
	w.ask(pod, eth0)
	w.startAgent()
	w.awaitLinks(pod, "", "management=1")

	w.ask(pod, "data@eth0")
	w.awaitEvent(pod, v1alpha1.EventHotPlugRefused, "eth0 is made with the pod")
	if err := w.del(pod); err != nil {
		w.Error(err)
	}
}

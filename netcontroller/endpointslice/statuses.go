// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// statuses has read the network-status of all pods, and knows who claims an
// address. Each change of one of many pods of a Service asks for all of them: an
// index of the cache would be asked, and the annotation read, some ten thousand
// times. It learns from the events of pods, of which the cache tells before any
// Service is worked on, and is safe for concurrent use.
type statuses struct {
	mu        sync.RWMutex
	pods      map[types.UID]*reading
	claimants map[claim][]*reading
}

// reading is what one pod's annotation says.
type reading struct {
	pod         *corev1.Pod // the cache's own, as of the last event
	attachments []podnetworks.Attachment
	err         error
	claims      []claim
}

func newStatuses() *statuses {
	return &statuses{pods: map[types.UID]*reading{}, claimants: map[claim][]*reading{}}
}

// set notes a pod as it is now.
func (s *statuses) set(pod *corev1.Pod) {
	s.mu.RLock()
	old := s.pods[pod.UID]
	s.mu.RUnlock()
	if old != nil && saysTheSame(old.pod, pod) {
		s.mu.Lock()
		old.pod = pod
		s.mu.Unlock()
		return
	}
	s.drop(pod.UID)
	text := pod.Annotations[v1alpha1.AnnotationNetworkStatus]
	if text == "" {
		return
	}
	now := &reading{pod: pod, claims: claimsOf(pod)}
	now.attachments, now.err = podnetworks.ParseStatus(text)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[pod.UID] = now
	for _, c := range now.claims {
		s.claimants[c] = append(s.claimants[c], now)
	}
}

// saysTheSame tells whether two versions of a pod attach and claim the same.
func saysTheSame(a, b *corev1.Pod) bool {
	for _, key := range []string{v1alpha1.AnnotationNetworkStatus, v1alpha1.AnnotationNetworkStatusSandbox} {
		if a.Annotations[key] != b.Annotations[key] {
			return false
		}
	}
	return a.Status.Phase == b.Status.Phase && hasSandbox(a) == hasSandbox(b)
}

// drop forgets a pod that is gone.
func (s *statuses) drop(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.pods[uid]
	if !ok {
		return
	}
	delete(s.pods, uid)
	for _, c := range old.claims {
		left := slices.DeleteFunc(s.claimants[c], func(r *reading) bool { return r == old })
		if s.claimants[c] = left; len(left) == 0 {
			delete(s.claimants, c)
		}
	}
}

// of is what a pod's network-status says; the caller must not change it.
func (s *statuses) of(pod *corev1.Pod) ([]podnetworks.Attachment, error) {
	text := pod.Annotations[v1alpha1.AnnotationNetworkStatus]
	s.mu.RLock()
	defer s.mu.RUnlock()
	if known := s.pods[pod.UID]; known != nil && known.pod.Annotations[v1alpha1.AnnotationNetworkStatus] == text {
		return known.attachments, known.err
	}
	return podnetworks.ParseStatus(text) // the cache is ahead of its events
}

// isContested tells whether another claimant stands in a pod's way; see outclaims.
func (s *statuses) isContested(pod *corev1.Pod, c claim, anywhere bool) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.ContainsFunc(s.claimants[c], func(r *reading) bool { return outclaims(r.pod, pod, anywhere) })
}

// rivals are the other pods that claim an address.
func (s *statuses) rivals(pod *corev1.Pod, c claim) []*corev1.Pod {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []*corev1.Pod
	for _, r := range s.claimants[c] {
		if r.pod.UID != pod.UID {
			out = append(out, r.pod)
		}
	}
	return out
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

// TestStatusesTellOfThePodsThereAre: after any order of events it tells what one
// tells that is filled anew, and keeps nothing of pods that are gone.
func TestStatusesTellOfThePodsThereAre(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1)) // #nosec G404 -- to be repeated
	pods, s := map[types.UID]*corev1.Pod{}, newStatuses()
	for step := range 2000 {
		uid := types.UID(fmt.Sprint(random.IntN(6)))
		if pod := pods[uid]; pod != nil && random.IntN(4) == 0 {
			delete(pods, uid)
			s.drop(uid)
		} else {
			pods[uid] = randomPod(random, uid)
			s.set(pods[uid])
		}
		anew := newStatuses()
		for _, pod := range pods {
			anew.set(pod)
		}
		if len(s.pods) != len(anew.pods) || len(s.claimants) != len(anew.claimants) {
			t.Fatalf("step %d: %d pods and %d addresses are known, want %d and %d", step, len(s.pods), len(s.claimants), len(anew.pods), len(anew.claimants))
		}
		for _, pod := range pods {
			got, err := s.of(pod)
			want, wantErr := readStatus(pod)
			if diff := cmp.Diff(want, got); diff != "" || (err == nil) != (wantErr == nil) {
				t.Fatalf("step %d, pod %s: %v, want %v:\n%s", step, pod.UID, err, wantErr, diff)
			}
			for i := range 4 {
				c := claim{"data", netip.AddrFrom4([4]byte{10, 20, 0, byte(i)})}
				if a, b := s.isContested(pod, c, false), anew.isContested(pod, c, false); a != b {
					t.Fatalf("step %d, pod %s, %v: contested %t, want %t", step, pod.UID, c, a, b)
				}
				if a, b := uids(s.rivals(pod, c)), uids(anew.rivals(pod, c)); !slices.Equal(a, b) {
					t.Fatalf("step %d, pod %s, %v: the rivals are %v, want %v", step, pod.UID, c, a, b)
				}
			}
		}
	}
}

func uids(pods []*corev1.Pod) []string {
	var out []string
	for _, pod := range pods {
		out = append(out, string(pod.UID))
	}
	slices.Sort(out)
	return out
}

func randomPod(random *rand.Rand, uid types.UID) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{UID: uid, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: fmt.Sprint("n", random.IntN(2))},
	}
	if random.IntN(5) > 0 {
		pod.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] = "sandbox"
	}
	switch random.IntN(6) {
	case 0: // none
	case 1:
		pod.Annotations[v1alpha1.AnnotationNetworkStatus] = "unreadable"
	default:
		attach(pod, attachment("data", "net1", fmt.Sprint("10.20.0.", random.IntN(4))))
	}
	if random.IntN(5) == 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	if random.IntN(5) == 0 {
		pod.DeletionTimestamp = &metav1.Time{}
	}
	return pod
}

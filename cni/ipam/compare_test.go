// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// server answers every list with one version, or with an error.
type server struct {
	client.Reader
	version string
	items   []metav1.PartialObjectMetadata
	err     error
}

func (s server) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.SetResourceVersion(s.version)
	list.(*metav1.PartialObjectMetadataList).Items = s.items
	return s.err
}

// cacheAt is a cache that has come so far.
func cacheAt(kind, version string) cacheVersion {
	return cacheVersion{kind: kind, version: func() string { return version }}
}

func TestTheAPIServersAnswersAreRememberedForTheNextAgent(t *testing.T) {
	f := newClaimFixture(t, world()...)
	path := filepath.Join(t.TempDir(), "made by nobody yet", "apiserver.json")
	f.claimer.history.path = path
	f.claimer.caches = []cacheVersion{cacheAt(blocksKind, "100")}
	f.claimer.live = server{version: "120"}
	f.claimer.askCaches() // which has just saved
	if err := f.claimer.compareAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	epoch, _ := f.claimer.history.signs()
	expectEqual(t, "pauses while the cache is behind", 0, epoch)
	next := newHistory(f.clock, path)
	expectEqual(t, "what the next agent knows", map[string]string{blocksKind: "120"}, next.newest())
}

func TestACacheThatIsAheadOfTheAPIServerEndsTheAgent(t *testing.T) {
	tests := []struct {
		name     string
		cache    string
		server   server
		answered bool
		want     error
	}{
		{"the server is as far", "100", server{version: "100"}, true, nil},
		{"the server is further", "100", server{version: "101"}, true, nil},
		{"the server was set back", "100", server{version: "99"}, true, ErrRewound},
		{"the server does not answer", "100", server{version: "1", err: errors.New("no answer")}, false, nil},
		{"the server says no version", "100", server{}, true, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newClaimFixture(t, world()...)
			f.claimer.live = test.server
			answered, err := f.claimer.askServer(t.Context(), cacheAt(blocksKind, test.cache))
			if !errors.Is(err, test.want) {
				t.Errorf("the agent goes on with %v, want %v", err, test.want)
			}
			expectEqual(t, "answered", test.answered, answered)
			epoch, _ := f.claimer.history.signs()
			expectEqual(t, "a pause begins", test.want != nil, epoch > 0)
		})
	}
}

// The agent was started while etcd was set back: its Pods are of before, its
// blocks of after.
func TestBlocksOfAnAgentWhoseCachesAreOfTwoStatesStayClosed(t *testing.T) {
	tests := []struct {
		name string
		pods string // how far that cache has come
		want error
	}{
		{"one cache is ahead of the server", "5000", ErrRewound},
		{"none is", "104", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
			f.claimer.caches = []cacheVersion{cacheAt(blocksKind, "105"), cacheAt("Pod", test.pods)}
			f.claimer.comparing = 0
			live := f.claimer.live
			calls, result := f.run()
			expectEqual(t, "calls", []string(nil), calls)
			expectEqual(t, "next look", lookBackEvery, result.RequeueAfter)
			if got, err := f.reserve(ask("a", "data")); err == nil || !strings.Contains(err.Error(), hintComparing) {
				t.Errorf("%v, %v before the comparison; want the hint %q", got, err, hintComparing)
			}
			expectEqual(t, "held", []v1alpha1.HeldAddresses{{Network: "data", Count: 7, Quarantined: true}}, f.Held(livePods))

			f.claimer.live = server{version: "105"}
			f.claimer.nodeUID = "" // what the API server has of the block is not looked at
			if err := f.claimer.compareAll(t.Context()); !errors.Is(err, test.want) {
				t.Fatalf("comparing: %v, want %v", err, test.want)
			}
			f.claimer.live = live
			f.run()
			got, err := f.reserve(ask("a", "data"))
			if opened := err == nil; opened != (test.want == nil) {
				t.Errorf("%v, %v after the comparison", got, err)
			}
		})
	}
}

func TestLeasesServeOnBeforeTheComparison(t *testing.T) {
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID))...)
	f.run()
	f.mustReserve(ask("a", "data"))
	f.restart()
	f.claimer.caches = []cacheVersion{cacheAt(blocksKind, "105")}
	f.claimer.comparing = 0
	f.run()
	expectEqual(t, "address of the block with a lease", []string{"10.20.0.18"}, f.mustReserve(ask("b", "data")))
}

// A round in which one kind does not answer counts for none: the API server may
// be set back before it does.
func TestAllCachesAreComparedInOneRound(t *testing.T) {
	f := newClaimFixture(t, world()...)
	server := &silentOnce{server: server{version: "105"}}
	f.claimer.live = server
	f.claimer.caches = []cacheVersion{cacheAt(blocksKind, "105"), cacheAt("Pod", "105"), cacheAt("Node", "105")}
	if err := f.claimer.compareAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "questions", int32(6), server.asked.Load())
	expectEqual(t, "compared", true, f.claimer.isCompared())
}

// silentOnce does not answer the first question.
type silentOnce struct {
	server
	asked atomic.Int32
}

func (s *silentOnce) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	if s.asked.Add(1) == 1 {
		return errors.New("no answer")
	}
	return s.server.List(ctx, list, opts...)
}

func TestACacheThatIsNotFilledIsNotCompared(t *testing.T) {
	f := newClaimFixture(t, world()...)
	server := &silentOnce{}
	f.claimer.live = server
	f.claimer.caches = []cacheVersion{cacheAt(blocksKind, "")}
	ctx, cancel := context.WithTimeout(t.Context(), 5*fillPoll)
	defer cancel()
	if err := f.claimer.compareAll(ctx); err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "questions", int32(0), server.asked.Load())
	expectEqual(t, "compared", false, f.claimer.isCompared())
}

func TestTheCacheThatIsFurthestIsAskedEveryOtherTime(t *testing.T) {
	c := &Claimer{caches: []cacheVersion{cacheAt(blocksKind, "99"), cacheAt("Node", "7"), cacheAt("Pod", "100")}}
	var got []string
	for turn := range 7 {
		got = append(got, c.nextCache(turn).kind)
	}
	expectEqual(t, "kinds", []string{"Pod", blocksKind, "Pod", "Node", "Pod", "Pod", "Pod"}, got)
}

// An API server that was set back has passed the versions of the caches.
func TestOwnBlocksTellOfARollback(t *testing.T) {
	own := func(change func(*metav1.PartialObjectMetadata)) server {
		item := metav1.PartialObjectMetadata{ObjectMeta: ipBlock(ours, thisNode, thisNodeUID).ObjectMeta}
		item.ResourceVersion = "1000000"
		if change != nil {
			change(&item)
		}
		return server{version: "1000001", items: []metav1.PartialObjectMetadata{item}}
	}
	tests := []struct {
		name   string
		server server
		happen func(f *claimFixture) // before the cache is looked at again
		want   error
	}{
		{"it is there", own(nil), nil, nil},
		{"it is another of the name", own(func(b *metav1.PartialObjectMetadata) { b.UID = "uid-other" }), nil, ErrRewound},
		{"it is older", own(func(b *metav1.PartialObjectMetadata) { b.ResourceVersion = "1" }), nil, ErrRewound},
		{"it is missing", server{version: "1000001"}, nil, ErrRewound},
		{"it was removed by force a moment ago", server{version: "1000001"}, func(f *claimFixture) { f.forceGone(ours) }, nil},
		{"it was let go a moment ago", server{version: "1000001"}, func(f *claimFixture) {
			f.claimer.mu.Lock()
			defer f.claimer.mu.Unlock()
			f.claimer.finished[ipBlock(ours, "", "").UID] = true
		}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // each waits for what may be on its way
			block := ipBlock(ours, thisNode, thisNodeUID)
			f := newClaimFixture(t, world(block)...)
			f.run()
			f.claimer.live = test.server
			if test.happen != nil {
				time.AfterFunc(lookBackEvery/4, func() { test.happen(f) })
			}
			_, err := f.claimer.askServer(t.Context(), cacheAt(blocksKind, "1000"))
			if !errors.Is(err, test.want) {
				t.Errorf("error %v, want %v", err, test.want)
			}
			epoch, _ := f.claimer.history.signs()
			expectEqual(t, "a pause begins", test.want != nil, epoch > 0)
		})
	}
}

func TestOwnBlocksAreAskedForInTurn(t *testing.T) {
	deleted := ipBlock("10.20.0.40/29", thisNode, thisNodeUID)
	now := metav1.NewTime(time.Unix(1000, 0))
	deleted.DeletionTimestamp = &now
	f := newClaimFixture(t, world(ipBlock(ours, thisNode, thisNodeUID), ipBlock(foreign, thisNode, thisNodeUID), deleted,
		ipBlock("10.20.0.32/29", thisNode, types.UID("uid-former")))...)
	f.run()
	var got []string
	for range 3 {
		got = append(got, string(f.claimer.nextOwn(t.Context(), blocksKind).Spec.CIDR))
	}
	expectEqual(t, "blocks", []string{ours, foreign, ours}, got)
	if other := f.claimer.nextOwn(t.Context(), "Pod"); other != nil {
		t.Errorf("block %s is asked for among Pods", other.Name)
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/netplane/netplane/cni/link"
)

// announceAfter is how long an interface that stands waits for others to be announced
// with it. Every announcement goes to every pod on the NIC or bridge; while pods come
// in numbers their ADDs would compete with it for the CPU. A container takes longer
// than that to start.
const announceAfter = 50 * time.Millisecond

// announceAgain is how old a sandbox may be that an agent announces when it starts:
// the one before may have been killed with the announcement due. Kubelet starts
// another within seconds; what was announced before takes no harm.
const announceAgain = time.Minute

// announcement is what one namespace was given.
type announcement struct {
	netns      string
	interfaces []link.Interface
}

// announcer has the neighbours of new interfaces told, after the runtime was.
type announcer struct {
	mu   sync.Mutex
	due  []announcement
	more chan struct{} // holds one token while due is not empty
}

func newAnnouncer() *announcer { return &announcer{more: make(chan struct{}, 1)} }

// add has interfaces announced soon. It does not block.
func (a *announcer) add(netns string, interfaces ...link.Interface) {
	if len(interfaces) == 0 {
		return
	}
	a.mu.Lock()
	a.due = append(a.due, announcement{netns, interfaces})
	a.mu.Unlock()
	select {
	case a.more <- struct{}{}:
	default:
	}
}

func (a *announcer) take() []announcement {
	a.mu.Lock()
	defer a.mu.Unlock()
	due := a.due
	a.due = nil
	return due
}

// slow: a NIC that was moved has no carrier for a while, which keeps no other waiting.
func (a *announcement) slow() bool {
	return slices.ContainsFunc(a.interfaces, func(i link.Interface) bool { return i.NIC != nil })
}

// announceAll announces until ctx ends, and then the rest at once. One pod comes after
// another, so that at most one CPU is busy with it.
func (s *Server) announceAll(ctx context.Context) {
	var apart sync.WaitGroup
	defer apart.Wait()
	for {
		select {
		case <-s.announcer.more:
			_ = s.pause(ctx, announceAfter) // cut short it is time all the more
		case <-ctx.Done():
		}
		for _, due := range s.announcer.take() {
			if due.slow() {
				apart.Go(func() { s.announce(context.WithoutCancel(ctx), &due) })
				continue
			}
			s.announce(context.WithoutCancel(ctx), &due)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// announce tells the neighbours of one pod. Whoever is gone meanwhile needs no announcement.
func (s *Server) announce(ctx context.Context, due *announcement) {
	logger := klog.FromContext(ctx).WithValues("netns", due.netns)
	switch err := s.deps.PodLinks.Announce(ctx, due.netns, due.interfaces...); {
	case err == nil:
	case link.IsGone(err):
		logger.V(2).Info("A pod went before its interfaces were announced", "err", err)
	default:
		logger.Error(err, "Neighbours may keep stale entries for a while")
	}
}

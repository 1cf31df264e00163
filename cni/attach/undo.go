// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/cni/wire"
)

// gcGrace spares what is younger from GC. A runtime makes its list some moments
// before it calls GC, and need not keep ADD out meanwhile (it should, CNI
// specification, GC, but a sandbox that lives is not to depend on that).
const gcGrace = time.Minute

// release gives addresses back for which no link was made, and returns cause.
func (s *Server) release(ctx context.Context, sandbox *wire.Sandbox, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	s.nics.drop(sandbox.ContainerID)
	return errors.Join(cause, s.deps.Addresses.Release(ctx, sandbox.ContainerID))
}

// giveUp is release once the binary has been told of delegates. Interfaces of
// theirs may have their addresses as long as the binary has not undone them: it
// says so by OpAbort, the runtime by OpDel, and otherwise the addresses are
// collected when the namespace is gone.
func (s *Server) giveUp(ctx context.Context, sandbox *wire.Sandbox, all []wanted, cause error) error {
	foreign := delegatedNames(all)
	if len(foreign) == 0 {
		return s.release(ctx, sandbox, cause)
	}
	s.nics.drop(sandbox.ContainerID)
	return errors.Join(cause, s.releaseBut(ctx, sandbox.ContainerID, all, foreign))
}

// releaseBut gives the addresses of all interfaces back but those of some.
func (s *Server) releaseBut(ctx context.Context, containerID string, all []wanted, keep []string) error {
	var names []string
	for i := range all {
		if name := all[i].request.IfName; !slices.Contains(keep, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil // no names would mean all
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return s.deps.Addresses.Release(ctx, containerID, names...)
}

// undo takes an ADD back that failed, or whose caller is gone. What other plugins
// have made is the binary's to remove; until then the record stays, and so do
// the addresses.
func (s *Server) undo(ctx context.Context, sandbox *Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if len(sandbox.Delegates) == 0 {
		return s.detach(ctx, sandbox)
	}
	if err := s.unlink(ctx, sandbox); err != nil {
		return err
	}
	var own []string
	for i := range sandbox.Asked {
		if name := sandbox.Asked[i].IfName; !slices.Contains(sandbox.Delegates, name) {
			own = append(own, name)
		}
	}
	if len(own) > 0 { // no names would mean all
		if err := s.deps.Addresses.Release(ctx, sandbox.ContainerID, own...); err != nil {
			return fmt.Errorf("releasing addresses: %w", err)
		}
	}
	left := &Sandbox{Sandbox: sandbox.Sandbox, State: StateUndone, Since: sandbox.Since, Delegates: sandbox.Delegates}
	if err := s.remember(left); err != nil {
		return err
	}
	s.left(ctx, sandbox)
	return nil
}

// detach removes what a sandbox has, in reverse. Its addresses are free for
// others only after no link has them. Every step may be repeated.
func (s *Server) detach(ctx context.Context, sandbox *Sandbox) error {
	if err := s.unlink(ctx, sandbox); err != nil {
		return err
	}
	if err := s.deps.Addresses.Release(ctx, sandbox.ContainerID); err != nil {
		return fmt.Errorf("releasing addresses: %w", err)
	}
	if err := s.forget(sandbox.ContainerID); err != nil {
		return err
	}
	s.left(ctx, sandbox)
	return nil
}

// unlink removes the interfaces that netplane has made, and the host's way to them.
func (s *Server) unlink(ctx context.Context, sandbox *Sandbox) error {
	if all := sandbox.links(); len(all) > 0 {
		if err := s.deps.PodLinks.Delete(ctx, sandbox.NetNS, all...); err != nil {
			return err
		}
	}
	if err := s.removePath(ctx, sandbox); err != nil {
		return err
	}
	s.deps.Reporter.Detached(types.UID(sandbox.PodUID), sandbox.ContainerID)
	return nil
}

// left has what is kept for all sandboxes follow: the record tells of this one's
// interfaces no more.
func (s *Server) left(ctx context.Context, sandbox *Sandbox) {
	s.leaveOverlays(sandbox)
	s.leaveClusterIPs()
	s.plugs.forget(sandbox.ContainerID)
	if sandbox.Path == nil {
		return
	}
	// A rule too many harms nobody; the next change drops it.
	if err := s.mask(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Kept a masquerade rule that nobody needs")
	}
}

// del is DEL: it never fails for what is gone. The binary calls it when nothing is
// left of what it has made itself.
func (s *Server) del(ctx context.Context, sandbox *wire.Sandbox) error {
	unlock, err := s.busy.lock(ctx, sandbox.ContainerID)
	if err != nil {
		return err
	}
	defer unlock()
	return s.delLocked(ctx, sandbox)
}

func (s *Server) delLocked(ctx context.Context, sandbox *wire.Sandbox) error {
	record, ok := s.sandbox(sandbox.ContainerID)
	if ok {
		return s.detach(ctx, record)
	}
	s.mu.Lock()
	_, unreadable := s.unreadable[sandbox.ContainerID]
	s.mu.Unlock()
	if unreadable && s.deps.NetNSExists(sandbox.NetNS) {
		// Which interfaces it has is not known. They go with the namespace, and
		// their addresses are collected then.
		return s.forget(sandbox.ContainerID)
	}
	if err := s.deps.Addresses.Release(ctx, sandbox.ContainerID); err != nil {
		return fmt.Errorf("releasing addresses: %w", err)
	}
	return s.forget(sandbox.ContainerID)
}

// gc is GC: what the runtime does not know any more goes. A sandbox in the
// middle of its ADD is not in anybody's list yet and is left alone, and so is one
// that got its networks after the list was made.
func (s *Server) gc(ctx context.Context, valid []string) error {
	var failed []error
	for _, sandbox := range s.snapshot() {
		if slices.Contains(valid, sandbox.ContainerID) || !s.garbage(sandbox.ContainerID) {
			continue
		}
		failed = append(failed, s.gcOne(ctx, sandbox))
	}
	return errors.Join(failed...)
}

// gcOne removes a sandbox, unless another request has made it a new one.
func (s *Server) gcOne(ctx context.Context, sandbox *Sandbox) error {
	unlock, err := s.busy.lock(ctx, sandbox.ContainerID)
	if err != nil {
		return err
	}
	defer unlock()
	if !s.garbage(sandbox.ContainerID) {
		return nil
	}
	klog.FromContext(ctx).Info("Removing a sandbox that the runtime does not know", "pod", sandbox.Pod(), "containerID", sandbox.ContainerID)
	return s.delLocked(ctx, &sandbox.Sandbox)
}

// garbage: a sandbox that is in no list is one that nobody knows any more.
func (s *Server) garbage(containerID string) bool {
	sandbox, ok := s.sandbox(containerID)
	return ok && sandbox.State != StateAttaching && s.deps.Clock.Since(sandbox.Since) >= gcGrace
}

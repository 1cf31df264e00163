// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
)

const (
	// plugWorkers bounds the pods whose interfaces change at once.
	plugWorkers = 4
	// plugAgainFirst and plugAgainLast bound the pause after an interface could
	// not be added: what lacked may have come.
	plugAgainFirst, plugAgainLast = time.Second, 15 * time.Second
	// plugTimeout bounds one look at one pod.
	plugTimeout = time.Minute
)

// plugs are the pods whose annotation and interfaces are to be compared.
type plugs struct {
	queue workqueue.TypedRateLimitingInterface[types.UID]

	mu sync.Mutex
	// seen is what is known of a sandbox between two looks, by container ID.
	seen map[string]plugged
}

// plugged is what a look at a sandbox left.
type plugged struct {
	// fresh is the annotation that the API server has confirmed since the ADD:
	// while the cache shows the same, it is not behind what the ADD was given.
	fresh     string
	confirmed bool
	// refused is what the pod was told last.
	refused string
}

func newPlugs() plugs {
	return plugs{
		seen: map[string]plugged{},
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](plugAgainFirst, plugAgainLast),
			workqueue.TypedRateLimitingQueueConfig[types.UID]{Name: "hot-plug"}),
	}
}

func (p *plugs) of(containerID string) plugged {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[containerID]
}

func (p *plugs) note(containerID string, what plugged) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[containerID] = what
}

func (p *plugs) forget(containerID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.seen, containerID)
}

// PodChanged has the interfaces of a pod compared with its annotation. It never
// blocks.
func (s *Server) PodChanged(uid types.UID) { s.plugs.queue.Add(uid) }

// followChanges hot-plugs until ctx ends.
func (s *Server) followChanges(ctx context.Context) {
	stop := context.AfterFunc(ctx, s.plugs.queue.ShutDown)
	defer stop()
	var workers sync.WaitGroup
	for range plugWorkers {
		workers.Go(func() {
			for s.nextChange(ctx) {
			}
		})
	}
	workers.Wait()
}

func (s *Server) nextChange(ctx context.Context) bool {
	uid, shutdown := s.plugs.queue.Get()
	if shutdown {
		return false
	}
	defer s.plugs.queue.Done(uid)
	ctx, cancel := context.WithTimeout(ctx, plugTimeout)
	defer cancel()
	if s.look(ctx, uid) {
		s.plugs.queue.Forget(uid)
	} else {
		s.plugs.queue.AddRateLimited(uid)
	}
	return true
}

// look makes the interfaces of a pod those that it asks for. It is false if it
// is to be tried again.
func (s *Server) look(ctx context.Context, uid types.UID) (done bool) {
	sandbox := s.newestOf(uid)
	if sandbox == nil {
		return true
	}
	logger := klog.FromContext(ctx).WithValues("pod", sandbox.Pod(), "containerID", sandbox.ContainerID)
	// Most looks end here: the pod has what it asks for.
	asked, refusal, known, err := s.askedNow(ctx, sandbox, false)
	if err != nil || !known {
		return err == nil
	}
	if len(sandbox.Going) == 0 && refusal == "" && settled(planChange(sandbox.Asked, asked, sandbox.Delegates...)) {
		s.tell(sandbox, "")
		return true
	}
	working, unlock, err := s.busy.lockYielding(ctx, sandbox.ContainerID)
	if err != nil {
		return false
	}
	defer unlock()
	sandbox, ok := s.sandbox(sandbox.ContainerID)
	if !ok || sandbox.State != StateAttached {
		return true // DEL was faster
	}
	refusals, again, err := s.replug(working, sandbox)
	if err != nil && working.Err() == nil {
		logger.Info("Could not change the pod's interfaces yet", "err", err)
	}
	if working.Err() == nil || !again {
		s.tell(sandbox, strings.Join(refusals, "; "))
	}
	return !again
}

func settled(c change) bool { return c.empty() && len(c.refused) == 0 }

// newestOf is the sandbox that a pod lives in; nil if it has none from here, or
// one of an earlier version, which does not tell what it was made for.
func (s *Server) newestOf(uid types.UID) *Sandbox {
	var newest *Sandbox
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sandbox := range s.sandboxes {
		if types.UID(sandbox.PodUID) == uid && sandbox.State == StateAttached && (newest == nil || newest.Since.Before(sandbox.Since)) {
			newest = sandbox
		}
	}
	if newest == nil || uid == "" || !newest.told() {
		return nil
	}
	return newest
}

// askedNow reads what the pod asks for now, or says why it cannot be read.
func (s *Server) askedNow(ctx context.Context, sandbox *Sandbox, fresh bool) (asked []podnetworks.Request, refusal string, known bool, err error) {
	text, known, err := s.deps.Running.Networks(ctx, sandbox.Pod(), types.UID(sandbox.PodUID), fresh)
	if err != nil || !known {
		return nil, "", false, err
	}
	if fresh {
		seen := s.plugs.of(sandbox.ContainerID)
		seen.fresh, seen.confirmed = text, true
		s.plugs.note(sandbox.ContainerID, seen)
	}
	if strings.TrimSpace(text) == "" {
		return nil, "", true, nil
	}
	asked, err = podnetworks.Parse(text)
	if err != nil {
		return nil, fmt.Sprintf("the interfaces stay as they are: annotation %s: %v", v1alpha1.AnnotationNetworks, err), true, nil
	}
	return asked, "", true, nil
}

// current is askedNow by the cache, unless that may be behind what the sandbox
// was made with: then by the API server, once for each text.
func (s *Server) current(ctx context.Context, sandbox *Sandbox) (asked []podnetworks.Request, refusal string, known bool, err error) {
	text, known, err := s.deps.Running.Networks(ctx, sandbox.Pod(), types.UID(sandbox.PodUID), false)
	if err != nil || !known {
		return nil, "", false, err
	}
	seen := s.plugs.of(sandbox.ContainerID)
	return s.askedNow(ctx, sandbox, !seen.confirmed || seen.fresh != text)
}

// replug takes away what is going and what is not asked for any more, and adds
// what is new. It goes on with the others when one cannot be added.
func (s *Server) replug(ctx context.Context, sandbox *Sandbox) (refusals []string, again bool, err error) {
	if len(sandbox.Going) > 0 {
		if sandbox, err = s.settle(ctx, sandbox); err != nil {
			return nil, true, err
		}
		s.report(sandbox)
	}
	asked, refusal, known, err := s.current(ctx, sandbox)
	switch {
	case err != nil:
		return nil, true, err
	case !known:
		return nil, false, nil
	case refusal != "":
		return []string{refusal}, false, nil
	}
	plan := planChange(sandbox.Asked, asked, sandbox.Delegates...)
	kept := s.keepIrreplaceable(sandbox, &plan)
	refusals = plan.refused
	var done []string
	for _, name := range plan.remove {
		if sandbox, err = s.unplug(ctx, sandbox, name); err != nil {
			return append(refusals, fmt.Sprintf("interface %s is not removed yet: %v", name, err)), true, err
		}
		done = append(done, "removed "+name)
	}
	failed := kept
	for i := range plan.add {
		request := &plan.add[i]
		if sandbox, err = s.plug(ctx, sandbox, *request); err != nil {
			refusals = append(refusals, fmt.Sprintf("interface %s on network %q is not added yet: %v", request.IfName, request.Name, err))
			failed = append(failed, err)
			continue
		}
		done = append(done, fmt.Sprintf("added %s on network %q", request.IfName, request.Name))
	}
	if len(done) > 0 {
		note := strings.Join(done, ", ")
		klog.FromContext(ctx).Info("Changed the interfaces of a running pod", "pod", sandbox.Pod(), "changes", note)
		s.deps.Running.Plugged(sandbox.Pod(), types.UID(sandbox.PodUID), note)
	}
	return refusals, len(failed) > 0, errors.Join(failed...)
}

// keepIrreplaceable leaves an interface as it is where the one that is to take its
// place cannot be had, and says why.
func (s *Server) keepIrreplaceable(sandbox *Sandbox, plan *change) (failed []error) {
	defer s.nics.drop(sandbox.ContainerID)
	var asks []ipam.Ask // of those that take another's place
	plan.add = slices.DeleteFunc(plan.add, func(r podnetworks.Request) bool {
		at := slices.Index(plan.remove, r.IfName)
		if at < 0 {
			return false
		}
		w, err := s.admitInPlace(sandbox, &r)
		if err == nil {
			var ask *ipam.Ask
			if ask, err = s.availableInPlace(sandbox, w, asks); err == nil {
				if ask != nil {
					asks = append(asks, *ask)
				}
				return false
			}
		}
		plan.remove = slices.Delete(plan.remove, at, at+1)
		plan.refused = append(plan.refused, fmt.Sprintf("interface %s is not changed yet: %v", r.IfName, err))
		failed = append(failed, err)
		return true
	})
	return failed
}

// admitInPlace is admitAll for an interface that is to take another's place. A NIC
// that the former one has shows as free only once that is gone.
func (s *Server) admitInPlace(sandbox *Sandbox, r *podnetworks.Request) (*wanted, error) {
	if network, ok := s.deps.Networks.Get(r.Name); ok && takesNIC(network) && s.holdsNIC(sandbox, r.IfName, network) {
		w := &wanted{request: *r, network: network}
		if err := w.checkRequest(); err != nil {
			return nil, err
		}
		if err := w.checkNetwork(); err != nil {
			return nil, err
		}
		return w, s.checkNamespace(network, sandbox.PodNamespace)
	}
	all, err := s.admitAll(&sandbox.Sandbox, []podnetworks.Request{*r})
	if err == nil && all[0].delegated() {
		err = invalid("network %q: %s", r.Name, madeWithPod)
	}
	if err != nil {
		return nil, err
	}
	return &all[0], nil
}

// holdsNIC: an interface has, or stands on, a NIC that a Network gives pods whole.
func (s *Server) holdsNIC(sandbox *Sandbox, name string, network *v1alpha1.Network) bool {
	at := slices.IndexFunc(sandbox.Interfaces, func(i link.Interface) bool { return i.Name == name })
	if at < 0 {
		return false
	}
	nic := sandbox.Interfaces[at].Parent
	if own := sandbox.Interfaces[at].NIC; own != nil {
		nic = own.Name
	}
	exclusive := s.deps.Topology().Exclusive(network.Spec.PhysicalNet)
	return slices.ContainsFunc(exclusive, func(d link.Device) bool { return d.Name == nic })
}

// standIn is the end of the name by which an address is asked for while the
// interface of that name has one still; no interface can have it.
const standIn = "/next"

// availableInPlace says why an interface that is to take another's place would get
// no address, besides those that asks are for. It returns what it asks for; nil if
// it gets what the former interface gives up.
func (s *Server) availableInPlace(sandbox *Sandbox, w *wanted, asks []ipam.Ask) (*ipam.Ask, error) {
	if err := s.findFixedNow(&sandbox.Sandbox, w); err != nil {
		return nil, err
	}
	former := slices.IndexFunc(sandbox.Asked, func(r podnetworks.Request) bool { return r.IfName == w.request.IfName })
	same := former >= 0 && sandbox.Asked[former].Name == w.network.Name
	if w.plan == nil || same && !w.request.Fixed() && !sandbox.Asked[former].Fixed() {
		return nil, nil
	}
	ask := w.ask(&sandbox.Sandbox)
	ask.IfName += standIn
	err := s.deps.Addresses.Available(append(slices.Clone(asks), ask))
	var held *ipam.FixedInUseError
	if errors.As(err, &held) && held.Lease.ContainerID == sandbox.ContainerID && held.Lease.IfName == w.request.IfName {
		return nil, nil
	}
	if err != nil {
		return nil, retry("%v", err)
	}
	return &ask, nil
}

// tell has the pod told why its interfaces are not what it asks for, once for
// each reason.
func (s *Server) tell(sandbox *Sandbox, refusal string) {
	seen := s.plugs.of(sandbox.ContainerID)
	if seen.refused == refusal {
		return
	}
	seen.refused = refusal
	s.plugs.note(sandbox.ContainerID, seen)
	if refusal != "" {
		s.deps.Running.Refused(sandbox.Pod(), types.UID(sandbox.PodUID), refusal)
	}
}

// settleOld takes away what the last agent left half plugged. What cannot be
// now is tried again while Run serves.
func (s *Server) settleOld(ctx context.Context, sandbox *Sandbox) {
	if len(sandbox.Going) == 0 {
		return
	}
	klog.FromContext(ctx).Info("Taking away interfaces that were on their way", "pod", sandbox.Pod(), "containerID", sandbox.ContainerID, "interfaces", len(sandbox.Going))
	if _, err := s.settle(ctx, sandbox); err != nil {
		klog.FromContext(ctx).Error(err, "Could not take away interfaces yet", "containerID", sandbox.ContainerID)
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// Server serves the CNI binary.
type Server struct {
	config  Config
	deps    Deps
	records Sandboxes
	busy    keyedMutex
	plugs   plugs
	// announcer is told of interfaces that stand.
	announcer *announcer

	mu        sync.Mutex
	loaded    bool
	sandboxes map[string]*Sandbox // by container ID; the values do not change
	// unreadable are the containers whose record could not be read, so that nobody
	// knows what is idle, with their namespaces as far as they are known.
	unreadable map[string]string
	// leaving are the sandboxes whose path was removed while their DEL goes on.
	leaving map[string]bool

	// nics is held while a pod is given one.
	nics takenNICs
	// parents is read-locked while an interface is designed on a device that no
	// record tells of yet, and locked while idle devices are removed.
	parents sync.RWMutex

	// guarding: there may be spoof checks; used by Run alone.
	guarding bool
	// untagging: there may be rules against VLAN tags; used by Run alone.
	untagging bool

	// paths is held while the host's side of eth0 pods changes.
	paths   sync.Mutex
	masking string // the rules in force, rendered
	// reached are the routes to whole subnets, by the Network and device.
	reached map[string][]link.SubnetRoute
}

// NewServer checks its parts and starts nothing.
func NewServer(config Config, deps Deps) (*Server, error) {
	if config.StateDir == "" {
		return nil, errors.New("attach.Config.StateDir is missing")
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	if deps.Clock == nil {
		deps.Clock = clock.RealClock{}
	}
	if deps.NetNSExists == nil {
		deps.NetNSExists = link.Exists
	}
	return &Server{
		config: config, deps: deps, records: Sandboxes(config.Sandboxes()),
		busy:      keyedMutex{holders: map[string]*holder{}},
		nics:      takenNICs{by: map[string]string{}, below: map[string][]string{}},
		plugs:     newPlugs(),
		announcer: newAnnouncer(),
		sandboxes: map[string]*Sandbox{}, unreadable: map[string]string{}, guarding: true, untagging: true,
		leaving: map[string]bool{}, reached: map[string][]link.SubnetRoute{},
	}, nil
}

// ReplaySpool reads what the sandboxes have, undoes ADDs that were never
// answered, and carries out the DELs that came while no agent served. What
// cannot be undone now is tried again while Run serves. The journal of
// addresses must have been replayed before it, and Run comes after.
func (s *Server) ReplaySpool(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	records, unreadable, err := s.records.Load()
	if err != nil {
		return err
	}
	for id := range unreadable {
		logger.Error(unreadable[id].Err, "Ignored a sandbox record; its interfaces stay until the network namespace is gone", "containerID", id)
	}
	s.mu.Lock()
	for id := range unreadable {
		s.unreadable[id] = unreadable[id].NetNS
	}
	for i := range records {
		s.sandboxes[records[i].ContainerID] = &records[i]
	}
	s.loaded = true
	s.mu.Unlock()
	for i := range records {
		if records[i].State != StateAttaching {
			s.settleOld(ctx, &records[i])
			continue
		}
		logger.Info("Undoing an ADD that was never answered", "pod", records[i].Pod(), "containerID", records[i].ContainerID)
		if err := s.undo(ctx, &records[i]); err != nil {
			logger.Error(err, "Could not undo an ADD yet", "containerID", records[i].ContainerID)
		}
	}
	if err := s.config.Spool().Tidy(); err != nil {
		logger.Error(err, "Kept files of writers that were killed")
	}
	s.replay(ctx)
	s.sweep(ctx)
	return nil
}

// replay carries out the spooled DELs; those that fail stay in the spool for the
// next look: those of ReplaySpool, and what came before the socket stood, or did
// not get an answer.
func (s *Server) replay(ctx context.Context) {
	logger := klog.FromContext(ctx)
	dels, files, err := s.config.Spool().List()
	if err != nil {
		logger.Error(err, "Spooled DELs wait for the next look")
		return
	}
	for _, file := range files {
		logger.Error(s.config.Spool().PutAside(file), "Put a file of the spool aside that is no DEL", "file", file)
	}
	for _, del := range dels {
		err := s.del(ctx, &del)
		if err == nil {
			err = s.config.Spool().Remove(del)
		}
		if err != nil {
			logger.Error(err, "Could not carry out a spooled DEL yet", "containerID", del.ContainerID)
			continue
		}
		logger.Info("Carried out a spooled DEL", "containerID", del.ContainerID)
	}
}

// unreachable is what an operator hears of paths that could not be made.
const unreachable = "The host cannot reach pods with a Network on eth0"

// tagged is what an operator hears of rules that could not be made.
const tagged = "Pods on bridges may be able to send frames with VLAN tags"

// restore makes the host's side of every sandbox true again, and has
// network-status written and new interfaces announced where the last agent did not
// come to it.
func (s *Server) restore(ctx context.Context) {
	for _, sandbox := range s.snapshot() {
		if sandbox.State != StateAttached {
			continue
		}
		if s.deps.Clock.Since(sandbox.Since) < announceAgain {
			s.announcer.add(sandbox.NetNS, sandbox.Interfaces...)
		}
		s.report(sandbox)
		s.PodChanged(types.UID(sandbox.PodUID))
	}
	if err := s.repath(ctx); err != nil {
		klog.FromContext(ctx).Error(err, unreachable)
	}
	if err := s.mask(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Pods with a Network on eth0 cannot reach Services")
	}
	if err := s.reguard(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Some pods are without their spoof check")
	}
	if err := s.reuntag(ctx); err != nil {
		klog.FromContext(ctx).Error(err, tagged)
	}
}

// snapshot lists the sandboxes by container ID.
func (s *Server) snapshot() []*Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Collect(maps.Values(s.sandboxes))
	slices.SortFunc(out, func(a, b *Sandbox) int { return strings.Compare(a.ContainerID, b.ContainerID) })
	return out
}

// Sandboxes is the number of pods that have, or are being given, interfaces.
func (s *Server) Sandboxes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sandboxes)
}

func (s *Server) sandbox(containerID string) (*Sandbox, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sandbox, ok := s.sandboxes[containerID]
	return sandbox, ok
}

// blind: some record could not be read, so that nobody knows what is idle.
func (s *Server) blind() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unreadable) > 0
}

// unread are the sandboxes whose record could not be read but for their namespace.
func (s *Server) unread() []*Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Sandbox
	for id, netns := range s.unreadable {
		if netns != "" {
			out = append(out, &Sandbox{Sandbox: wire.Sandbox{ContainerID: id, NetNS: netns}})
		}
	}
	return out
}

// Unreadable counts the files of the agent's state that could not be read.
func (s *Server) Unreadable() (records, spooled int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unreadable), s.config.Spool().Aside()
}

// alone says that a sandbox has a Network on eth0.
func (s *Server) alone(containerID string) bool {
	sandbox, ok := s.sandbox(containerID)
	if !ok {
		return false
	}
	ofNetwork := func(i link.Interface) bool { return i.Name == podnetworks.PrimaryInterface }
	return slices.ContainsFunc(sandbox.Interfaces, ofNetwork) || slices.Contains(sandbox.Delegates, podnetworks.PrimaryInterface)
}

// remember writes a record to disk and memory.
func (s *Server) remember(sandbox *Sandbox) error {
	if err := s.records.Save(sandbox); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[sandbox.ContainerID] = sandbox
	return nil
}

func (s *Server) forget(containerID string) error {
	if err := s.records.Remove(containerID); err != nil {
		return err
	}
	s.mu.Lock()
	sandbox, known := s.sandboxes[containerID]
	delete(s.sandboxes, containerID)
	delete(s.unreadable, containerID)
	delete(s.leaving, containerID)
	s.mu.Unlock()
	if known {
		s.tellNICs(sandbox)
	}
	return nil
}

// collect frees what sandboxes left whose namespace is gone: runtimes may lose
// a DEL, and containerd calls no GC. A namespace must be missing twice in a
// row, as a runtime makes and removes it around the CNI calls.
func (s *Server) collect(ctx context.Context) {
	ticker := s.deps.Clock.NewTicker(collectEvery)
	defer ticker.Stop()
	missing := map[string]bool{}
	var used []string
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		missing = s.collectOnce(ctx, missing)
		if err := s.deps.NICs.Mend(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "A NIC that came back from a pod waits for its name")
		}
		used = s.pruneParents(ctx, used)
		if err := s.reguard(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "Some pods are without their spoof check")
		}
		if err := s.reuntag(ctx); err != nil {
			klog.FromContext(ctx).Error(err, tagged)
		}
		if err := s.repath(ctx); err != nil {
			klog.FromContext(ctx).Error(err, unreachable)
		}
		if err := s.remask(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "Pods with a Network on eth0 cannot reach Services")
		}
	}
}

// collectOnce returns the sandboxes whose namespace is missing for the first time.
func (s *Server) collectOnce(ctx context.Context, before map[string]bool) map[string]bool {
	logger := klog.FromContext(ctx)
	missing := map[string]bool{}
	for _, sandbox := range append(s.snapshot(), s.unread()...) {
		id := sandbox.ContainerID
		if s.deps.NetNSExists(sandbox.NetNS) {
			continue
		}
		if !before[id] {
			missing[id] = true
			continue
		}
		if err := s.del(ctx, &sandbox.Sandbox); err != nil {
			missing[id] = true
			logger.Error(err, "Could not free what a vanished sandbox left", "pod", sandbox.Pod(), "containerID", id)
			continue
		}
		logger.Info("Freed what a vanished sandbox left", "pod", sandbox.Pod(), "containerID", id)
	}
	s.replay(ctx)
	return missing
}

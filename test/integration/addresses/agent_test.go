// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

// The agents' times, shrunk like all that the run takes.
const (
	reserveWait   = 500 * time.Millisecond
	idleGrace     = 400 * time.Millisecond
	scarceGrace   = 300 * time.Millisecond
	drainGrace    = 100 * time.Millisecond
	unusedGrace   = time.Second
	probeEvery    = time.Second
	collectEvery  = 100 * time.Millisecond
	collectGrace  = 200 * time.Millisecond
	publishEvery  = 200 * time.Millisecond
	physicalNet   = "phy"
	nodeInterface = "eth1"
)

// agent is one life of a node's agent: what cni/agent wires, less what touches
// the kernel.
type agent struct {
	node    *node
	line    *line
	addrs   *ipam.Manager
	client  client.Client
	caches  cache.Cache
	dead    atomic.Bool
	serving chan struct{} // closed when CNI requests are served
	cancel  context.CancelFunc
	ctx     context.Context
	born    time.Time
	running sync.WaitGroup // all that must end before the next life begins
}

// startAgent begins a life. It needs no API server: the caches fill when there
// is one, and only then the agent serves.
func (n *node) startAgent() (*agent, error) {
	w := n.world
	a := &agent{node: n, line: newLine(w.outage, w.frozen), serving: make(chan struct{}), born: time.Now()}
	a.line.blocks, a.line.die = n.blocks, a.die
	own := fields.OneTermEqualSelector(metav1.ObjectNameField, n.name)
	mgr, err := w.newProcess("agent "+n.name, a.line, map[client.Object]cache.ByObject{
		&corev1.Node{}:          {Field: own},
		&v1alpha1.NodeNetwork{}: {Field: own},
		&corev1.Pod{}:           {Field: fields.OneTermEqualSelector("spec.nodeName", n.name)},
		&v1alpha1.IPBlock{}:     {Field: fields.OneTermEqualSelector(v1alpha1.FieldIPBlockNodeName, n.name)},
	})
	if err != nil {
		return nil, err
	}
	a.client, a.caches = mgr.GetClient(), mgr.GetCache()
	a.addrs = ipam.New(ipam.Config{JournalPath: n.journal, Wait: reserveWait, Logger: w.log.logger("manager " + n.name)})
	claimer := ipam.NewClaimer(
		ipam.ClaimerConfig{
			NodeName: n.name, VersionFile: n.journal + ".version", IdleGrace: idleGrace, ScarceGrace: scarceGrace,
			UnusedGrace: unusedGrace, DrainGrace: drainGrace, RollbackPause: w.rollbackPause(), ProbeEvery: probeEvery,
		},
		ipam.ClaimerDeps{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Manager: a.addrs, Logger: w.log.logger("history " + n.name)})
	if err := claimer.SetupWithManager(mgr); err != nil {
		return nil, err
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	w.addLine(a.line)
	a.running.Go(func() {
		// Whatever ends the process, ErrRewound for one: it is started again.
		if err := mgr.Start(a.ctx); a.ctx.Err() == nil {
			w.log.printf("the agent of %s ends: %v", n.name, err)
			a.die()
		}
	})
	a.running.Go(func() { a.serve(mgr.GetCache()) })
	return a, nil
}

// serve is the agent's start, in the order of cni/agent: caches, journal,
// sandboxes, spool.
func (a *agent) serve(caches cache.Cache) {
	for _, obj := range watched() {
		if _, err := caches.GetInformer(a.ctx, obj, cache.BlockUntilSynced(false)); err != nil {
			return
		}
	}
	if !caches.WaitForCacheSync(a.ctx) || a.dead.Load() {
		return
	}
	if err := a.addrs.Replay(func(l ipam.Lease) bool { return a.node.world.kernel.alive(l.ContainerID) }); err != nil {
		if !a.dead.Load() {
			a.node.world.violate("the journal of %s: %v", a.node.name, err)
		}
		return
	}
	var published v1alpha1.NodeNetwork
	if err := a.client.Get(a.ctx, client.ObjectKey{Name: a.node.name}, &published); client.IgnoreNotFound(err) != nil {
		return // of a dead agent
	}
	a.addrs.Recall(published.Status.Conflicts)
	a.node.replaySandboxes(a)
	if a.dead.Load() {
		return
	}
	close(a.serving)
	collector := &ipam.Collector{Manager: a.addrs, Every: collectEvery, Grace: collectGrace,
		Exists: func(l ipam.Lease) bool { return a.node.world.kernel.alive(l.ContainerID) }}
	a.running.Go(func() { _ = collector.Start(a.ctx) })
	a.publish()
}

// publish keeps the node's offer, and the addresses that are held, in the API.
func (a *agent) publish() {
	ticker := time.NewTicker(publishEvery)
	defer ticker.Stop()
	for {
		if err := a.publishOnce(); err != nil {
			a.node.world.log.printf("agent %s: publishing: %v", a.node.name, err)
		}
		select {
		case <-a.ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (a *agent) publishOnce() error {
	var pods corev1.PodList
	if err := a.client.List(a.ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	living := map[types.UID]bool{}
	for i := range pods.Items {
		living[pods.Items[i].UID] = true
	}
	var have v1alpha1.NodeNetwork
	err := a.client.Get(a.ctx, client.ObjectKey{Name: a.node.name}, &have)
	if apierrors.IsNotFound(err) {
		have = v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: a.node.name}}
		err = a.client.Create(a.ctx, &have)
	}
	if err != nil {
		return err
	}
	want := have.DeepCopy()
	want.Status = offer(a.node.world.name)
	want.Status.Conflicts = a.addrs.Conflicts()
	want.Status.Held = a.addrs.Held(func(uid types.UID) bool { return living[uid] })
	if equality.Semantic.DeepEqual(have.Status, want.Status) {
		return nil
	}
	return a.client.Status().Patch(a.ctx, want, client.MergeFrom(&have))
}

// offer is the status of a node whose one NIC is up.
func offer(run string) v1alpha1.NodeNetworkStatus {
	return v1alpha1.NodeNetworkStatus{
		PhysicalNetworks: []v1alpha1.NodePhysicalNetwork{{
			Name: physicalNet + "-" + run, Interfaces: []string{nodeInterface}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp,
		}},
		Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionAgentReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAgentPodReady,
			LastTransitionTime: metav1.Unix(0, 0),
		}},
	}
}

// die is SIGKILL: from here on nothing of this life reaches the kernel, the
// journal or the API server. It does not wait.
func (a *agent) die() {
	a.node.world.kernel.mu.Lock() // no interface is being made in this moment
	already := a.dead.Swap(true)
	a.node.world.kernel.mu.Unlock()
	if already {
		return
	}
	a.line.kill()
	a.cancel()
}

// bury waits until nothing of a dead agent runs any more.
func (a *agent) bury() error {
	a.running.Wait()
	a.node.world.dropLine(a.line)
	return a.addrs.Close()
}

// isServing waits a moment for the agent's start to be done.
func (a *agent) isServing(wait time.Duration) bool {
	late := time.After(wait)
	for {
		select {
		case <-a.serving:
			return !a.dead.Load()
		default:
		}
		select {
		case <-a.serving:
		case <-a.ctx.Done():
			return false
		case <-late:
			return false
		}
	}
}

// add is ADD as cni/attach does it: addresses, a record of what is to be made,
// interfaces, the record of what stands. It dies where it is told to.
func (a *agent) add(c *container, asks []ipam.Ask, at crashPoint) error {
	a.running.Add(1)
	defer a.running.Done()
	crash := func(here crashPoint) bool {
		if at == here {
			a.die()
		}
		return a.dead.Load()
	}
	if crash(beforeReserve) {
		return errDead
	}
	leases, err := a.addrs.Reserve(a.ctx, asks)
	if err != nil {
		return err
	}
	if crash(inReserve) || crash(afterReserve) {
		return errDead
	}
	a.node.remember(c.id, attaching)
	for i := range leases {
		if i == len(leases)/2 && crash(amidInterfaces) {
			return errDead
		}
		if err := a.node.world.kernel.add(a, c.id, leases[i].IfName, leases[i].Address); err != nil {
			return errors.Join(err, a.del(c.id, nowhere))
		}
	}
	if crash(beforeAnswer) {
		return errDead
	}
	a.node.remember(c.id, attached)
	return nil
}

// del is DEL: interfaces first, addresses after.
func (a *agent) del(id string, at crashPoint) error {
	a.running.Add(1)
	defer a.running.Done()
	if err := a.node.world.kernel.strip(a, id); err != nil {
		return err
	}
	if at == beforeRelease {
		a.die()
	}
	if a.dead.Load() {
		return errDead
	}
	if err := a.addrs.Release(a.ctx, id); err != nil {
		return err
	}
	if at == inRelease {
		a.die()
		return errDead
	}
	a.node.forget(id)
	return nil
}

// tearTail damages the end of a journal as a process does that dies in the
// middle of a write: of the last record, which nobody was answered for, a piece
// is missing, or something follows it.
func tearTail(path, container string, how uint64) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	last := bytes.LastIndexByte(bytes.TrimSuffix(data, []byte{'\n'}), '\n') + 1
	if !bytes.Contains(data[last:], []byte(`"`+container+`"`)) {
		return nil // another record follows: this one is whole
	}
	at := last + int(how>>8%uint64(len(data)-last))
	switch how % 4 {
	case 0: // cut
		data = data[:at]
	case 1: // a page of zeros
		for i := at; i < len(data); i++ {
			data[i] = 0
		}
	case 2: // a flipped bit
		data[at] ^= 1 << (how >> 4 % 7)
	case 3: // whole, and a piece of the next
		data = append(data, []byte(`deadbeef {"op":"lea`)...)
	}
	return os.WriteFile(path, data, 0o600)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
)

const (
	addTries  = 2 // that a kubelet makes in one step
	startWait = 500 * time.Millisecond
	patience  = 3 * time.Minute // on a machine that does much else
	poll      = 20 * time.Millisecond
	look      = 100 * time.Millisecond // between two looks at the whole cluster
)

// attachState is a sandbox record's, as in cni/attach.
type attachState int

const (
	attaching attachState = iota
	attached
)

// pod is a pod bound to a node.
type pod struct {
	name string
	uid  types.UID
	nets []string
	gone atomic.Bool // its object is deleted
}

// node is a machine, with its kubelet and its runtime. One goroutine, which
// follows the node's steps, touches all but what mu guards.
type node struct {
	world   *world
	name    string
	journal string
	agent   *agent
	off     bool // the machine has no power
	slots   [slotsPerNode]*sandboxed
	stray   []string // containers of pods that were deleted by force
	serial  int
	blocks  *gate        // its agents' lines', see rollback
	synced  atomic.Int64 // how often the API server had been set back when it compared its pods

	mu      sync.Mutex
	uid     types.UID // of the Node; empty while there is none
	records map[string]attachState
	spool   map[string]bool // DELs that came while no agent served
}

// sandboxed is a pod and its sandbox, if it has one.
type sandboxed struct {
	pod       *pod
	container string
}

func (n *node) remember(id string, state attachState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records[id] = state
}

func (n *node) forget(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.records, id)
	delete(n.spool, id)
}

func (n *node) currentUID() types.UID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.uid
}

func (n *node) setUID(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.uid = uid
}

// replaySandboxes undoes what was never answered, and does what was spooled.
func (n *node) replaySandboxes(a *agent) {
	n.mu.Lock()
	ids := slices.Collect(maps.Keys(n.spool))
	for id, state := range n.records {
		if state == attaching {
			ids = append(ids, id)
		}
	}
	n.mu.Unlock()
	for _, id := range ids {
		if err := a.del(id, nowhere); err != nil {
			n.world.log.printf("agent %s: undoing %s: %v", n.name, id, err)
		}
	}
}

// run follows the steps.
func (n *node) run(steps []step) {
	for i := range steps {
		s := &steps[i]
		n.resync()
		n.revive()
		n.mature(s)
		n.world.log.printf("node %s: step %d: %s", n.name, i, s)
		n.do(s)
		time.Sleep(s.pause)
	}
}

// idle is a machine's life after its steps: its kubelet goes on starting agents
// that ended, as long as others live.
func (n *node) idle(over <-chan struct{}) {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for {
		select {
		case <-over:
			return
		case <-ticker.C:
			n.resync()
			if !n.off {
				n.revive()
			}
		}
	}
}

// revive starts the agent again if it has died, or the machine if it is off.
func (n *node) revive() {
	switch {
	case n.off:
		n.powerOn()
	case n.agent.dead.Load():
		n.restartAgent(nil)
	}
}

func (n *node) do(s *step) {
	switch s.kind {
	case addPod:
		n.addPod(s)
	case newSandbox:
		n.newSandbox(s)
	case delPod, loseDel, agentDown, forceDelete:
		n.endPod(s)
	case crashAgent:
		n.restartAgent(nil)
	case partition:
		n.agent.line.parted.set(true)
		if s.tear%2 == 0 {
			n.agent.line.hangUp() // the watches do not survive it
		}
	case holdWatches:
		n.agent.line.events.set(true)
	case heal:
		n.agent.line.calm()
		n.reap()
	case loseReplies:
		n.agent.line.lose(s.count, 0)
	case loseRequests:
		n.agent.line.lose(0, s.count)
	case crashOnCreate:
		n.agent.dieOnCreate(s.crash)
	case rebootNode:
		n.powerOff()
		n.boot()
	case removeNode:
		n.remove()
	case reregister:
		n.agent.line.parted.set(false) // a kubelet that registers reaches the API server
		n.unregister()
		n.register()
	}
}

// dieOnCreate has the agent die when it creates the next block: before the
// request is sent, or after it was carried out.
func (a *agent) dieOnCreate(at crashPoint) {
	a.line.mu.Lock()
	defer a.line.mu.Unlock()
	a.line.onCreate = func(sent bool) bool {
		if sent == (at == betweenSendReply) {
			a.die()
		}
		return a.dead.Load()
	}
}

// restartAgent kills the agent and starts the next, with faults in between.
func (n *node) restartAgent(between func()) {
	n.agent.die()
	n.world.check(n.agent.bury())
	if between != nil {
		between()
	}
	a, err := n.startAgent()
	n.world.check(err)
	if err == nil {
		n.agent = a
	}
}

// addPod has a pod bound to the node, and tries to start it.
func (n *node) addPod(s *step) {
	if n.slots[s.slot] != nil {
		return
	}
	p := n.world.createPod(n, s)
	if p == nil {
		return
	}
	n.slots[s.slot] = &sandboxed{pod: p}
	n.startPod(n.slots[s.slot], s)
}

// startPod tries as a kubelet does, each time with another sandbox.
func (n *node) startPod(sb *sandboxed, s *step) {
	at := s.crash
	for range addTries {
		if n.agent.dead.Load() {
			n.restartAgent(nil)
		}
		n.serial++
		c := &container{id: fmt.Sprintf("%s-c%d", n.name, n.serial), node: n.name, nodeUID: n.currentUID(), pod: sb.pod}
		n.world.kernel.create(c)
		err := errors.New("no agent serves")
		if n.agent.isServing(startWait) {
			err = n.agent.add(c, asksOf(c), at)
		}
		n.world.log.printf("node %s: ADD %s: %v %v", n.name, c.id, n.world.kernel.addresses(c.id), err)
		if err == nil {
			sb.container = c.id
			return
		}
		if at == inReserve && n.agent.dead.Load() {
			n.restartAgent(func() { n.world.check(tearTail(n.journal, c.id, s.tear)) })
		}
		at = nowhere
		n.teardown(c.id, nowhere)
	}
}

func asksOf(c *container) []ipam.Ask {
	out := make([]ipam.Ask, len(c.pod.nets))
	for i, network := range c.pod.nets {
		out[i] = ipam.Ask{Network: network, Owner: ipam.Owner{
			PodUID: string(c.pod.uid), PodNamespace: metav1.NamespaceDefault, PodName: c.pod.name,
			ContainerID: c.id, IfName: fmt.Sprint("net", i+1), NetNS: "/run/netns/" + c.id,
		}}
	}
	return out
}

// teardown is a runtime's: DEL, spooled if no agent serves, then the namespace.
func (n *node) teardown(id string, at crashPoint) {
	err := errDead
	if n.agent.isServing(0) {
		err = n.agent.del(id, at)
	}
	n.world.log.printf("node %s: DEL %s: %v", n.name, id, err)
	if err != nil {
		n.mu.Lock()
		n.spool[id] = true
		n.mu.Unlock()
	}
	n.world.kernel.kill(id)
}

func (n *node) newSandbox(s *step) {
	sb := n.slots[s.slot]
	if sb == nil {
		return
	}
	if sb.container != "" {
		n.teardown(sb.container, nowhere)
		sb.container = ""
	}
	n.startPod(sb, s)
}

// endPod ends a pod in one of the ways in which pods end.
func (n *node) endPod(s *step) {
	sb := n.slots[s.slot]
	if sb == nil {
		return
	}
	if s.kind == forceDelete {
		// The machine does not know yet: reap stops the container later.
		n.slots[s.slot] = nil
		if sb.container != "" {
			n.stray = append(n.stray, sb.container)
		}
		n.world.deletePod(sb.pod)
		return
	}
	n.slots[s.slot] = nil
	if sb.container != "" {
		n.endContainer(sb.container, s)
	}
	n.world.deletePod(sb.pod)
}

func (n *node) endContainer(id string, s *step) {
	switch s.kind {
	case loseDel:
		n.world.kernel.kill(id)
	case agentDown:
		n.agent.die()
		n.teardown(id, nowhere)
		n.restartAgent(nil)
	default:
		n.teardown(id, s.crash)
		if s.crash == inRelease && n.agent.dead.Load() {
			n.restartAgent(func() { n.world.check(tearTail(n.journal, id, s.tear)) })
		}
	}
}

// reap stops the containers of pods that were deleted by force.
func (n *node) reap() {
	for _, id := range n.stray {
		n.teardown(id, nowhere)
	}
	n.stray = nil
}

// powerOff ends all that lives in memory: containers, agent, and tmpfs with
// journal, sandbox records and spool.
func (n *node) powerOff() {
	n.agent.die()
	n.world.kernel.powerOff(n.name)
	n.world.check(n.agent.bury())
	n.world.check(os.RemoveAll(filepath.Dir(n.journal)))
	n.mu.Lock()
	n.records, n.spool = map[string]attachState{}, map[string]bool{}
	n.mu.Unlock()
	n.stray = nil
	for _, sb := range n.slots {
		if sb != nil {
			sb.container = ""
		}
	}
}

// boot starts agent and pods after powerOff.
func (n *node) boot() {
	a, err := n.startAgent()
	if n.world.check(err); err != nil {
		return
	}
	n.agent = a
	for _, sb := range n.slots {
		if sb != nil {
			n.startPod(sb, &step{})
		}
	}
}

// remove takes a machine that is off out of the cluster; its pods go, too.
func (n *node) remove() {
	n.powerOff()
	n.off = true
	n.unregister()
	for i, sb := range n.slots {
		if sb != nil {
			n.world.deletePod(sb.pod)
			n.slots[i] = nil
		}
	}
}

// powerOn brings a removed machine back, as another Node of the same name.
func (n *node) powerOn() {
	n.off = false
	n.register()
	n.boot()
}

// unregister deletes the Node, and with it what it owns.
func (n *node) unregister() {
	n.setUID("")
	w := n.world
	w.admin("deleting a Node", func() error {
		return client.IgnoreNotFound(w.api.Delete(w.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}))
	})
	w.admin("deleting a NodeNetwork", func() error {
		return client.IgnoreNotFound(w.api.Delete(w.ctx, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: n.name}}))
	})
}

func (n *node) register() {
	w := n.world
	w.admin("creating a Node", func() error {
		obj := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
		err := w.createOrGet(obj)
		if err == nil {
			n.setUID(obj.UID)
		}
		return err
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Sizes of one run.
const (
	nodesPerRun  = 50
	stepsPerNode = 10
	slotsPerNode = 4 // pods that a node runs at once
)

// kind is what a step does.
type kind string

const (
	addPod        kind = "add"        // a pod comes
	delPod        kind = "del"        // a pod ends, DEL included
	loseDel       kind = "lose-del"   // a pod ends, its DEL never comes
	forceDelete   kind = "force"      // a pod's object goes, its container lives on for a while
	newSandbox    kind = "sandbox"    // a pod's sandbox is made anew
	crashAgent    kind = "crash"      // the agent dies and is started again
	agentDown     kind = "down"       // a pod ends while no agent runs
	partition     kind = "partition"  // nothing gets from the agent to the API server
	holdWatches   kind = "stale"      // watch events of the agent are held back
	loseReplies   kind = "lose-reply" // writes are done, their replies are lost
	loseRequests  kind = "lose-write" // writes are lost
	crashOnCreate kind = "crash-create"
	rebootNode    kind = "reboot"
	removeNode    kind = "remove"   // the machine is off, its Node is deleted
	reregister    kind = "register" // the Node is deleted and made again while its pods run
	heal          kind = "heal"     // partition and held watches end
)

// crashPoint is where the agent dies in a step.
type crashPoint string

const (
	nowhere          crashPoint = ""
	beforeReserve    crashPoint = "before-reserve"
	inReserve        crashPoint = "torn-journal" // the record is in the journal, whole or not, and Reserve has not answered
	afterReserve     crashPoint = "after-reserve"
	amidInterfaces   crashPoint = "amid-interfaces"
	beforeAnswer     crashPoint = "before-answer"
	beforeRelease    crashPoint = "before-release" // interfaces are removed, addresses are not free yet
	inRelease        crashPoint = "torn-release"
	beforeSend       crashPoint = "before-send" // of the IPBlock that is being created
	betweenSendReply crashPoint = "between-send-and-reply"
)

// step is one thing that happens to a node.
type step struct {
	kind  kind
	slot  int
	nets  []int // the pod's interfaces: index of each one's Network
	crash crashPoint
	count int           // of lost replies or requests
	tear  uint64        // how the journal's tail is damaged
	pause time.Duration // after the step
}

func (s *step) String() string {
	return fmt.Sprintf("%s slot=%d nets=%v crash=%s count=%d", s.kind, s.slot, s.nets, s.crash, s.count)
}

// event is one thing that happens to the cluster.
type event struct {
	kind  string
	net   int
	pause time.Duration // before it
}

// Events of the cluster.
const (
	eventOutage     = "outage"     // no agent and no controller reaches the API server
	eventController = "controller" // the controller dies and is started again
	eventLag        = "lag"        // the controller's watch events are held back
	eventGrow       = "grow"       // a Network gets another subnet
	eventExclude    = "exclude"    // a Network's addresses become fewer, and more again
	eventAskBack    = "ask-back"   // an admin deletes a block
	eventBackup     = "backup"     // etcd's state is copied
	eventRollback   = "rollback"   // etcd is set back to it
)

// plan is all that a seed decides. Timing decides the rest.
type plan struct {
	seed     uint64
	rollback bool // etcd is restored from a backup
	networks []networkPlan
	nodes    [][]step
	events   []event
}

// networkPlan is a Network's size.
type networkPlan struct {
	bits, blockSize int
}

// newPlan draws a plan; it depends on its arguments only.
func newPlan(seed uint64, rollback bool) *plan {
	random := rand.New(rand.NewPCG(seed, 0x6e6574))
	p := &plan{seed: seed, rollback: rollback}
	// One Network with room, and one that is Tight: fewer blocks than nodes.
	p.networks = []networkPlan{
		{bits: 22, blockSize: 8},
		{bits: 24, blockSize: []int{4, 8}[random.IntN(2)]},
	}
	if random.IntN(4) == 0 {
		p.networks[0].bits = 23
	}
	for range nodesPerRun {
		p.nodes = append(p.nodes, drawSteps(random, rollback))
	}
	p.events = drawEvents(random, rollback)
	return p
}

func drawSteps(random *rand.Rand, rollback bool) []step {
	kinds, count := faults(), stepsPerNode
	if rollback {
		kinds, count = seeing(kinds), 2*stepsPerNode
	}
	var out []step
	var busy [slotsPerNode]bool
	for range count {
		s := step{slot: random.IntN(slotsPerNode), tear: random.Uint64(), pause: time.Duration(random.IntN(60)) * time.Millisecond}
		s.kind = drawKind(random, kinds, busy[s.slot])
		switch s.kind {
		case addPod:
			busy[s.slot] = true
			s.nets, s.crash = drawNets(random), drawCrash(random, beforeReserve, inReserve, afterReserve, amidInterfaces, beforeAnswer)
		case newSandbox:
			s.crash = drawCrash(random, beforeReserve, inReserve, afterReserve, amidInterfaces, beforeAnswer)
		case delPod:
			busy[s.slot] = false
			s.crash = drawCrash(random, beforeRelease, inRelease)
		case loseDel, agentDown:
			busy[s.slot] = false
		case crashOnCreate:
			s.crash = []crashPoint{beforeSend, betweenSendReply}[random.IntN(2)]
		case loseReplies, loseRequests:
			s.count = 1 + random.IntN(3)
		case rebootNode, removeNode:
			busy = [slotsPerNode]bool{}
		}
		out = append(out, s)
	}
	return out
}

// drawKind draws pods mostly: faults only matter while something goes on.
func drawKind(random *rand.Rand, faults []kind, busy bool) kind {
	pick := random.IntN(100)
	if pick < 66 {
		if !busy {
			return addPod
		}
		return []kind{delPod, delPod, delPod, loseDel, forceDelete, newSandbox, newSandbox, agentDown}[random.IntN(8)]
	}
	return faults[random.IntN(len(faults))]
}

func faults() []kind {
	return []kind{
		crashAgent, crashAgent, crashAgent, partition, partition, holdWatches, holdWatches, heal, heal, heal,
		loseReplies, loseReplies, loseReplies, loseRequests, crashOnCreate, crashOnCreate, rebootNode, removeNode, reregister,
	}
}

// seeing leaves out what may keep an agent from seeing that the API server was
// set back: its caches are older than the backup, or it has lost its memory. Its
// claims may then collide with blocks that nobody has asserted yet; the design
// names this limit (docs/design, what happens after a restore).
func seeing(kinds []kind) []kind {
	return slices.DeleteFunc(kinds, func(k kind) bool {
		return k == partition || k == holdWatches || k == rebootNode || k == removeNode
	})
}

func drawNets(random *rand.Rand) []int {
	return [][]int{{0}, {0}, {1}, {0, 1}, {0, 0}, {1, 0, 0}, {0, 0, 0, 0, 0, 0}}[random.IntN(7)]
}

func drawCrash(random *rand.Rand, points ...crashPoint) crashPoint {
	if random.IntN(4) > 0 {
		return nowhere
	}
	return points[random.IntN(len(points))]
}

func drawEvents(random *rand.Rand, rollback bool) []event {
	kinds := []string{eventOutage, eventController, eventLag, eventGrow, eventExclude, eventAskBack, eventAskBack, eventAskBack}
	random.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	var out []event
	for _, k := range kinds {
		out = append(out, event{kind: k, net: random.IntN(2), pause: time.Duration(100+random.IntN(200)) * time.Millisecond})
	}
	if rollback {
		at := random.IntN(len(out) - 1)
		out = slices.Insert(out, at, event{kind: eventBackup, pause: time.Second})
		out = append(out, event{kind: eventRollback, pause: 3 * time.Second})
	}
	return out
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// errDead is what an agent that has died gets done.
var errDead = errors.New("the agent is dead")

// kernel is what the machines of all nodes hold: network namespaces with the
// addresses in them. It outlives the agents and knows nothing of their books.
type kernel struct {
	violate func(format string, args ...any)

	mu         sync.Mutex
	containers map[string]*container
	holders    map[netip.Addr]*container
	made       int // interfaces, ever
}

// container is a pod's sandbox.
type container struct {
	id      string
	node    string
	nodeUID types.UID // of the Node that its pod was bound to
	pod     *pod
	addrs   map[string]netip.Addr // by interface
}

func newKernel(violate func(format string, args ...any)) *kernel {
	return &kernel{violate: violate, containers: map[string]*container{}, holders: map[netip.Addr]*container{}}
}

// create makes a namespace without interfaces.
func (k *kernel) create(c *container) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c.addrs = map[string]netip.Addr{}
	k.containers[c.id] = c
}

// add makes an interface on behalf of an agent. This is the moment at which an
// address that somebody else has is a collision on the wire.
func (k *kernel) add(a *agent, id, ifname string, addr netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.containers[id]
	if a.dead.Load() {
		return errDead
	}
	if c == nil {
		return fmt.Errorf("container %s is gone", id)
	}
	if other := k.holders[addr]; other != nil {
		k.violate("%s gets address %s, which %s has", c, addr, other)
		return fmt.Errorf("address %s is taken", addr)
	}
	k.made++
	k.holders[addr], c.addrs[ifname] = c, addr
	return nil
}

// strip removes the interfaces of a namespace on behalf of an agent.
func (k *kernel) strip(a *agent, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a.dead.Load() {
		return errDead
	}
	k.stripLocked(k.containers[id])
	return nil
}

func (k *kernel) stripLocked(c *container) {
	if c == nil {
		return
	}
	for _, addr := range c.addrs {
		delete(k.holders, addr)
	}
	clear(c.addrs)
}

// kill removes a namespace and all that is in it.
func (k *kernel) kill(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stripLocked(k.containers[id])
	delete(k.containers, id)
}

// powerOff removes all namespaces of a machine.
func (k *kernel) powerOff(node string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, c := range k.containers {
		if c.node == node {
			k.stripLocked(c)
			delete(k.containers, id)
		}
	}
}

func (k *kernel) alive(id string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.containers[id] != nil
}

// of lists the containers of a machine.
func (k *kernel) of(node string) []*container {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []*container
	for _, c := range k.containers {
		if c.node == node {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *container) int { return strings.Compare(a.id, b.id) })
	return out
}

// addresses are those of a container, by interface.
func (k *kernel) addresses(id string) map[string]netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]netip.Addr{}
	if c := k.containers[id]; c != nil {
		for ifname, addr := range c.addrs {
			out[ifname] = addr
		}
	}
	return out
}

// doomed counts the containers that a kubelet is about to stop, and that
// nothing in the API stands for any more: their pod's object is gone, and their
// Node's as well.
func (k *kernel) doomed(nodeUID func(node string) types.UID) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, c := range k.containers {
		if c.pod.gone.Load() && nodeUID(c.node) != c.nodeUID {
			n++
		}
	}
	return n
}

func (c *container) String() string {
	return fmt.Sprintf("container %s of node %s", c.id, c.node)
}

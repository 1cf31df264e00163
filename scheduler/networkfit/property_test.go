// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/v1alpha1"
)

// member is a node as it truly is, and what the scheduler is told of it.
type member struct {
	name      string
	nodeUID   types.UID
	nicUp     map[string]bool
	nics      int // that are up, for the Networks fast and slow to share
	agent     bool
	blocks    []*v1alpha1.IPBlock
	pods      []*v1.Pod            // in the NodeInfo
	assumed   map[types.UID]bool   // not bound yet
	sandboxes map[types.UID]string // live ones of pods that have ended, with their networks
	info      *nodeInfo
}

// cosmos is a random history of a few nodes. Whatever it does, it does in the
// order in which the parts of netplane and Kubernetes do it.
type cosmos struct {
	*testing.T
	random     *rand.Rand
	pl         *NetworkFit
	members    []*member
	made       int // pods and nodes
	generation int64
	cidr       int
	// What the history had, lest it prove nothing.
	placed, refused, full int
}

func TestRandomHistories(t *testing.T) {
	steps := 800
	if testing.Short() {
		steps = 200
	}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			c := &cosmos{T: t, random: rand.New(rand.NewPCG(seed, 1)), pl: newPlugin(t, makeNetwork("data"), makeNetwork("management"),
				nicNetwork("fast", "phy-nics"), nicNetwork("slow", "phy-nics"))}
			for range 3 {
				c.join()
			}
			for step := range steps {
				done := c.step()
				c.compare(fmt.Sprintf("step %d: %s", step, done))
				if t.Failed() {
					return
				}
			}
			if c.placed < steps/20 || c.refused < steps/20 || c.full < steps/50 {
				t.Errorf("only %d pods placed, %d refused, %d of them for want of a free address", c.placed, c.refused, c.full)
			}
		})
	}
}

// step does one thing.
func (c *cosmos) step() string {
	actions := []struct {
		name  string
		times int
		do    func(*member)
	}{
		{"place", 16, func(*member) { c.place() }},
		{"forget", 1, c.forget},
		{"bind", 6, c.bind},
		{"delete", 2, c.deletePod},
		{"terminate", 3, c.terminate},
		{"sandbox removed", 3, c.removeSandbox},
		{"claim", 1, c.claim},
		{"release", 1, c.release},
		{"NIC", 2, func(m *member) {
			name := c.network()
			m.nicUp[name] = !m.nicUp[name] || c.random.IntN(3) > 0
			c.publish(m)
		}},
		{"whole NIC", 1, func(m *member) { m.nics = c.random.IntN(7); c.publish(m) }},
		{"agent", 1, func(m *member) { m.agent = !m.agent || c.random.IntN(3) > 0; c.publish(m) }},
		{"status of a Network", 1, func(*member) {
			_ = c.pl.sources.networks.Update(makeNetwork(c.network(), func(n *v1alpha1.Network) { n.Status.Addresses.Used = c.random.Int64N(9) }))
		}},
		{"relist", 1, func(m *member) { c.relist(m) }},
		{"node made anew", 1, c.anew},
	}
	sum := 0
	for _, a := range actions {
		sum += a.times
	}
	pick := c.random.IntN(sum)
	for _, a := range actions {
		if pick -= a.times; pick < 0 {
			a.do(c.members[c.random.IntN(len(c.members))])
			return a.name
		}
	}
	return ""
}

func (c *cosmos) network() string { return []string{"data", "management"}[c.random.IntN(2)] }

func (c *cosmos) join() {
	c.made++
	m := &member{name: fmt.Sprint("n", c.made), nicUp: map[string]bool{"data": true, "management": true}, nics: 5, agent: true}
	c.members = append(c.members, m)
	c.anew(m)
}

// anew makes the Node object again: its pods, and what they had, are gone; its
// older blocks do not serve.
func (c *cosmos) anew(m *member) {
	c.made++
	for _, pod := range m.pods {
		_ = c.pl.sources.pods.Delete(pod)
	}
	m.nodeUID, m.pods = types.UID(fmt.Sprint("uid-", m.name, "-", c.made)), nil
	m.assumed, m.sandboxes = map[types.UID]bool{}, map[types.UID]string{}
	m.info = newNodeInfo(m.name)
	m.info.node.UID = m.nodeUID
	c.publish(m)
	c.changed(m)
	for _, name := range []string{"data", "management", "fast", "slow"} {
		c.claimOf(m, name)
	}
}

// changed tells the framework's snapshot.
func (c *cosmos) changed(m *member) {
	c.generation++
	m.info.set(c.generation, m.pods...)
}

// publish is what the agent does.
func (c *cosmos) publish(m *member) {
	var physical []v1alpha1.NodePhysicalNetwork
	for _, name := range slices.Sorted(maps.Keys(m.nicUp)) {
		if m.nicUp[name] {
			physical = append(physical, up(name)...)
		} else {
			physical = append(physical, notReady(name, v1alpha1.ReasonInterfaceDown)...)
		}
	}
	var held []v1alpha1.HeldAddresses
	for _, uid := range slices.Sorted(maps.Keys(m.sandboxes)) {
		for _, count := range c.demand(makePod("x", m.sandboxes[uid])) {
			held = append(held, v1alpha1.HeldAddresses{Network: count.name, Count: int32(count.n), PodUID: uid})
		}
	}
	status := metav1.ConditionFalse
	if m.agent {
		status = metav1.ConditionTrue
	}
	_ = c.pl.sources.nodes.Update(makeNode(m.name, physical, nicsOn("phy-nics", slices.Repeat([]string{"up"}, m.nics)...), hold(held...), setAgent(status)))
}

type nameCount struct {
	name string
	n    int
}

func (c *cosmos) demand(pod *v1.Pod) []nameCount {
	var out []nameCount
	for _, count := range c.pl.sources.demands.of(pod).demand {
		out = append(out, nameCount{count.Network, count.Addresses})
	}
	return out
}

// free is the truth: what the blocks serve less what living sandboxes have, and
// those that are to come.
func (c *cosmos) free(m *member, network string) (blocks, addresses int) {
	for _, block := range m.blocks {
		if block.Spec.Network == network && block.Spec.NodeUID == m.nodeUID && block.DeletionTimestamp == nil {
			blocks++
			addresses += 7
		}
	}
	taken := func(networks string) {
		for _, count := range c.demand(makePod("x", networks)) {
			if count.name == network {
				addresses -= count.n
			}
		}
	}
	for _, pod := range m.pods {
		if m.sandboxes[pod.UID] == "" {
			taken(pod.Annotations[v1alpha1.AnnotationNetworks])
		}
	}
	for _, networks := range m.sandboxes {
		taken(networks)
	}
	return blocks, addresses
}

// fits is whether the pod could start on the node.
func (c *cosmos) fits(m *member, pod *v1.Pod) bool {
	for _, count := range c.demand(pod) {
		blocks, addresses := c.free(m, count.name)
		serves := m.nicUp[count.name] || wholeNIC(count.name) && m.nics > 0
		if !m.agent || !serves || blocks == 0 || addresses < count.n {
			return false
		}
	}
	wanted := c.nicsOf(pod.Annotations[v1alpha1.AnnotationNetworks])
	return wanted == 0 || c.nicsTaken(m)+wanted <= m.nics
}

func wholeNIC(network string) bool { return network == "fast" || network == "slow" }

func (c *cosmos) nicsOf(networks string) int {
	sum := 0
	for _, count := range c.demand(makePod("x", networks)) {
		if wholeNIC(count.name) {
			sum += count.n
		}
	}
	return sum
}

// nicsTaken is what living sandboxes have of the NICs, and those that are to come.
func (c *cosmos) nicsTaken(m *member) int {
	sum := 0
	for _, pod := range m.pods {
		if m.sandboxes[pod.UID] == "" {
			sum += c.nicsOf(pod.Annotations[v1alpha1.AnnotationNetworks])
		}
	}
	for _, networks := range m.sandboxes {
		sum += c.nicsOf(networks)
	}
	return sum
}

// place does what a scheduling cycle does, and holds its outcome against the truth.
func (c *cosmos) place() {
	c.made++
	pod := makePod(fmt.Sprint("p", c.made), []string{"data", "management", "data,management", "data,data", "fast", "slow,data", "fast,slow"}[c.random.IntN(7)])
	_ = c.pl.sources.pods.Add(pod)
	var feasible []*member
	full := false
	for _, m := range c.members {
		got := filter(c, c.pl, pod, m.info)
		full = full || got.Code == "Unschedulable"
		if got == success() {
			feasible = append(feasible, m)
		}
		if (got == success()) != c.fits(m, pod) {
			c.Errorf("node %s for %v: %v, but the truth is %v", m.name, c.demand(pod), got, c.fits(m, pod))
		}
	}
	if len(feasible) == 0 {
		c.refused++
		if full {
			c.full++
		}
		_ = c.pl.sources.pods.Delete(pod)
		return
	}
	c.placed++
	m := feasible[c.random.IntN(len(feasible))]
	m.assumed[pod.UID] = true
	m.pods = append(m.pods, pod)
	c.changed(m)
	if c.nicsOf(pod.Annotations[v1alpha1.AnnotationNetworks]) > 0 && c.nicsTaken(m) > m.nics {
		c.Errorf("node %s: %d NICs are promised, it has %d", m.name, c.nicsTaken(m), m.nics)
	}
	for _, count := range c.demand(pod) {
		if _, addresses := c.free(m, count.name); addresses < 0 {
			c.Errorf("node %s: %d addresses of %s too many are promised", m.name, -addresses, count.name)
		}
	}
}

// take removes one of the node's pods from it, nil if there is none.
func (c *cosmos) take(m *member, assumed bool) *v1.Pod {
	for i, pod := range m.pods {
		if m.assumed[pod.UID] == assumed {
			m.pods = slices.Delete(slices.Clone(m.pods), i, i+1)
			return pod
		}
	}
	return nil
}

func (c *cosmos) forget(m *member) {
	if pod := c.take(m, true); pod != nil {
		delete(m.assumed, pod.UID)
		_ = c.pl.sources.pods.Delete(pod)
		c.changed(m)
	}
}

func (c *cosmos) bind(m *member) {
	pod := c.take(m, true)
	if pod == nil {
		return
	}
	delete(m.assumed, pod.UID)
	bound := pod.DeepCopy()
	bound.Spec.NodeName = m.name
	_ = c.pl.sources.pods.Update(bound)
	m.pods = append(m.pods, bound)
	c.changed(m)
}

// deletePod is the usual end: the sandbox goes before the object.
func (c *cosmos) deletePod(m *member) {
	if pod := c.take(m, false); pod != nil {
		_ = c.pl.sources.pods.Delete(pod)
		c.compare("delete: gone from the informer")
		c.changed(m)
	}
}

// terminate is a pod whose sandbox outlives it.
func (c *cosmos) terminate(m *member) {
	there := m.pods
	pod := c.take(m, false)
	if pod == nil {
		return
	}
	left := m.pods
	m.pods = there
	m.sandboxes[pod.UID] = pod.Annotations[v1alpha1.AnnotationNetworks]
	c.publish(m)
	c.compare("terminate: held")
	_ = c.pl.sources.pods.Delete(pod)
	c.compare("terminate: gone from the informer")
	m.pods = left
	c.changed(m)
}

func (c *cosmos) removeSandbox(m *member) {
	for _, uid := range slices.Sorted(maps.Keys(m.sandboxes)) {
		delete(m.sandboxes, uid)
		c.publish(m)
		return
	}
}

func (c *cosmos) claim(m *member) {
	if name := c.network(); len(m.blocks) < 8 {
		c.claimOf(m, name)
	}
}

func (c *cosmos) claimOf(m *member, network string) {
	c.cidr++
	block := makeBlock(network, m.name, c.cidr%32)
	block.Name, block.UID, block.Spec.NodeUID = fmt.Sprint("block-", c.cidr), types.UID(fmt.Sprint(c.cidr)), m.nodeUID
	m.blocks = append(m.blocks, block)
	_ = c.pl.sources.blocks.Add(block)
}

// release gives a block back that nobody needs, in two steps.
func (c *cosmos) release(m *member) {
	for i, block := range m.blocks {
		if block.DeletionTimestamp != nil {
			m.blocks = slices.Delete(m.blocks, i, i+1)
			_ = c.pl.sources.blocks.Delete(block)
			return
		}
		if _, addresses := c.free(m, block.Spec.Network); block.Spec.NodeUID != m.nodeUID || addresses >= 7 {
			m.blocks[i] = block.DeepCopy()
			m.blocks[i].DeletionTimestamp = &metav1.Time{}
			_ = c.pl.sources.blocks.Update(m.blocks[i])
			return
		}
	}
}

// relist is an informer's interrupted watch: meanwhile blocks were given back.
func (c *cosmos) relist(m *member) {
	var lost []*v1alpha1.IPBlock
	m.blocks = slices.DeleteFunc(m.blocks, func(block *v1alpha1.IPBlock) bool {
		if block.DeletionTimestamp != nil {
			lost = append(lost, block)
		}
		return block.DeletionTimestamp != nil
	})
	var all []any
	for _, m := range c.members {
		for i, block := range m.blocks {
			m.blocks[i] = block.DeepCopy()
			all = append(all, m.blocks[i])
		}
	}
	_ = c.pl.sources.blocks.Replace(all, "")
	for _, block := range lost {
		c.pl.sources.staleness().OnDelete(stored(block))
	}
}

// compare holds what is remembered against a plugin that remembers nothing, on
// the nodes as they are and on one whose last pod is preempted in a simulation.
func (c *cosmos) compare(when string) {
	c.Helper()
	known := c.pl.sources
	for _, m := range c.members {
		infos := []*nodeInfo{m.info}
		if n := len(m.pods); n > 0 && len(m.info.pods) == n {
			c.generation++
			without := newNodeInfo(m.name)
			without.node = m.info.node
			without.set(c.generation, m.pods[:n-1]...)
			infos = []*nodeInfo{m.info, without, m.info}
		}
		for _, info := range infos {
			for _, asked := range []string{"data", "management", "data,data,management", "fast,slow"} {
				fresh := *c.pl
				fresh.sources = &Sources{
					nodes: known.nodes, networks: known.networks, blocks: known.blocks, namespaces: known.namespaces,
					pods: known.pods, demands: known.demands, views: &views{},
				}
				state, pod := newCycleState(), makePod("probe", asked)
				if _, status := c.pl.PreFilter(c.Context(), state, pod, nil); !status.IsSuccess() {
					c.Fatal(status)
				}
				got, want := answerOf(c.pl.Filter(c.Context(), state, pod, info)), answerOf(fresh.Filter(c.Context(), state, pod, info))
				gotScore, _ := c.pl.Score(c.Context(), state, pod, info)
				wantScore, _ := fresh.Score(c.Context(), state, pod, info)
				if got != want || gotScore != wantScore {
					c.Errorf("%s: node %s for %s: remembered %v (score %d), recomputed %v (score %d)", when, m.name, asked, got, gotScore, want, wantScore)
				}
			}
		}
	}
}

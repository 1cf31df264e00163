// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// passLasts is for how long the library need not see all of a group: should
// something change in it that narrow does not look at, this ends it.
const passLasts = 10 * time.Minute

// passes remembers which groups the library has brought in line as a whole, and
// for what. It is safe for concurrent use.
type passes struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	of    map[passKey]passed
}

// passKey is a group: the Service is a child for the slices of a child.
type passKey struct {
	service types.NamespacedName
	network string
}

type passed struct {
	service *corev1.Service
	at      time.Time
	// before are the generations of slices that the library had nothing to change
	// of, and that it did not write since we run: its tracker does not know them.
	before map[types.UID]int64
}

func newPasses(c clock.PassiveClock) *passes {
	return &passes{clock: c, of: map[passKey]passed{}}
}

// holds tells whether the library has seen all of a group, for this Service.
func (p *passes) holds(g *group) bool {
	p.mu.Lock()
	last, ok := p.of[g.key()]
	p.mu.Unlock()
	return ok && p.clock.Since(last.at) < passLasts && sameForSlices(last.service, g.service)
}

// note says that the library has brought a whole group in line.
func (p *passes) note(g *group, before map[types.UID]int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[g.key()] = passed{g.service, p.clock.Now(), before}
}

// wasRight tells whether a slice of before our start was right then, and is the same.
func (p *passes) wasRight(g *group, slice *discoveryv1.EndpointSlice) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	generation, ok := p.of[g.key()].before[slice.UID]
	return ok && generation == slice.Generation
}

// forget has the library see all of a group again.
func (p *passes) forget(g *group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.of, g.key())
}

// forgetService is for a Service, or a child, that has no slices any more.
func (p *passes) forgetService(svc types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key := range p.of {
		if key.service == svc {
			delete(p.of, key)
		}
	}
}

func (g *group) set() sliceSet { return sliceSet{g.service.Name, g.network} }

func (g *group) key() passKey {
	return passKey{types.NamespacedName{Namespace: g.service.Namespace, Name: g.service.Name}, g.network}
}

// sameForSlices compares what slices get from their Service.
func sameForSlices(a, b *corev1.Service) bool {
	return a.UID == b.UID && equality.Semantic.DeepEqual(a.Labels, b.Labels) &&
		equality.Semantic.DeepEqual(a.Annotations, b.Annotations) && equality.Semantic.DeepEqual(&a.Spec, &b.Spec)
}

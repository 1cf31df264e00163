// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// trustAfter is how long a block without leases must have been the node's to
// stay so through a rollback: what came a moment before it was noticed may have
// come with it.
const trustAfter = 10 * time.Second

// lostBlock is a block in which leases live and which another node has.
type lostBlock struct {
	node string
	next time.Time // when to try again
}

// rewound is what a rollback has to do with a Network's blocks.
type rewound struct {
	epoch   int                   // the pause that trusted is from
	trusted map[netip.Prefix]bool // blocks that were the node's when it was noticed
	count   int                   // the signs up to which the API server was asked
	gone    map[types.UID]bool    // what it lacks, though the cache may show it
}

// verify asks the API server which blocks are the node's, once after each sign
// of a rollback: the cache may be behind. It leaves those closed that may be
// another node's.
func (c *Claimer) verify(ctx context.Context, v *view, st *claims) error {
	c.suspend(v, st)
	_, count := c.history.signs()
	if st.rewound.count == count {
		return nil
	}
	there := map[string]bool{}
	if len(v.blocks) > 0 {
		if err := c.listNames(ctx, there, client.MatchingFields{v1alpha1.FieldIPBlockNodeName: c.node}); err != nil {
			return fmt.Errorf("listing the node's blocks after a rollback: %w", err)
		}
	}
	clear(st.rewound.gone)
	for prefix, block := range v.blocks {
		if !there[block.Name] {
			st.rewound.gone[block.UID] = true
			c.seen(block)
			delete(v.blocks, prefix)
		}
	}
	st.rewound.count = count
	return nil
}

// hesitation is how long nothing that is new to the node is given out, and why:
// an earlier state of the API server may name this node where others have had
// addresses since.
func (c *Claimer) hesitation(now time.Time) (rest time.Duration, hint string) {
	if rest = c.history.rest(now); rest > 0 {
		return rest, hintRollback
	}
	if !c.isCompared() {
		return lookBackEvery, hintComparing
	}
	return 0, ""
}

// fixedWait is why a fixed address is not given out now, or empty: the IPClaim
// may be of an earlier state of the API server, and the address in use on
// another node by a pod that the state does not have.
func (c *Claimer) fixedWait() string {
	switch rest, hint := c.hesitation(c.clock.Now()); {
	case rest <= 0:
		return ""
	case hint == hintRollback:
		return hintFixedRollback
	default:
		return hint
	}
}

// suspend closes blocks that were not the node's before a pause, while it lasts.
// Until the caches are compared that is all but those in which leases live.
func (c *Claimer) suspend(v *view, st *claims) {
	now := c.clock.Now()
	if epoch, _ := c.history.signs(); st.rewound.epoch != epoch {
		st.rewound.epoch, st.rewound.trusted = epoch, c.trusted(v.name, now)
	}
	v.suspended, v.reopens = map[netip.Prefix]bool{}, 0
	rest, _ := c.hesitation(now)
	trusted := st.rewound.trusted
	if !c.isCompared() {
		trusted = c.leased(v.name)
	}
	for prefix := range v.blocks {
		if rest > 0 && !trusted[prefix] {
			v.suspended[prefix], v.reopens = true, rest
		}
	}
}

// leased are the blocks in which leases live.
func (c *Claimer) leased(network string) map[netip.Prefix]bool {
	out := map[netip.Prefix]bool{}
	usage := c.manager.Usage(network)
	for i := range usage.Leases {
		out[usage.Leases[i].Block] = true
	}
	return out
}

// trusted are the blocks that were the node's for certain.
func (c *Claimer) trusted(network string, now time.Time) map[netip.Prefix]bool {
	out := c.leased(network)
	usage := c.manager.Usage(network)
	for i := range usage.Blocks {
		if b := &usage.Blocks[i]; b.Leased > 0 || now.Sub(b.IdleSince) >= trustAfter {
			out[b.Prefix] = true
		}
	}
	return out
}

// assert creates the blocks anew in which leases live but which the API server
// lacks: somebody took the finalizer off, or etcd was restored from a backup.
// Until then another node could claim them. It returns when to try again.
func (c *Claimer) assert(ctx context.Context, v *view, st *claims, usage *Usage) (again time.Duration, err error) {
	var missing map[netip.Prefix]bool
	if !v.ending() && v.plan != nil {
		missing = v.missing(usage)
	}
	for prefix := range st.lost {
		if !missing[prefix] {
			delete(st.lost, prefix)
		}
	}
	now := c.clock.Now()
	var errs []error
	for prefix := range missing {
		lost, known := st.lost[prefix]
		if rest := lost.next.Sub(now); known && rest > 0 {
			again = sooner(again, rest)
			continue
		}
		holder, err := c.assertBlock(ctx, v, st, prefix)
		switch {
		case err != nil:
			errs = append(errs, err)
		case holder == nil:
			delete(st.lost, prefix)
		default:
			st.lost[prefix] = lostBlock{node: holder.Spec.NodeName, next: now.Add(conflictPause)}
			again = sooner(again, conflictPause)
		}
	}
	return again, errors.Join(errs...)
}

// missing are the blocks that leases live in and that the node does not hold.
// Leases of a former Network of this name count if a block of today's would
// give out their addresses.
func (v *view) missing(usage *Usage) map[netip.Prefix]bool {
	out := map[netip.Prefix]bool{}
	for i := range usage.Leases {
		l := &usage.Leases[i]
		if !l.aside() && v.blocks[l.Block] == nil && v.others[l.Block] == nil && v.plan.CheckBlock(l.Block) == nil {
			out[l.Block] = true
		}
	}
	return out
}

// assertBlock makes a block the node's again. It returns the block as it stands
// in the API if that is not possible.
func (c *Claimer) assertBlock(ctx context.Context, v *view, st *claims, prefix netip.Prefix) (*v1alpha1.IPBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name := addressing.BlockName(v.name, prefix)
	block := v.newBlock(c.node, prefix)
	err := c.client.Create(ctx, block)
	if apierrors.IsAlreadyExists(err) {
		block = &v1alpha1.IPBlock{}
		if err := c.live.Get(ctx, client.ObjectKey{Name: name}, block); err != nil {
			return nil, fmt.Errorf("reading IPBlock %q, in which addresses are in use: %w", name, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("asserting IPBlock %q, in which addresses are in use: %w", name, err)
	}
	if block.Spec.NodeName != c.node || block.Spec.NodeUID != v.nodeUID {
		return block, nil
	}
	log.FromContext(ctx).Info("Asserted a block that the API server lacked while its addresses were in use", "network", v.name, "block", prefix)
	c.expect(st, block)
	if err := v.add(block); err != nil {
		return nil, err
	}
	st.rewound.trusted[prefix] = true
	c.suspend(v, st)
	v.tell(c.manager)
	return nil, nil
}

// listNames adds the names of blocks, from the API server.
func (c *Claimer) listNames(ctx context.Context, names map[string]bool, selection client.MatchingFields) error {
	var page metav1.PartialObjectMetadataList
	page.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("IPBlockList"))
	for {
		if err := c.live.List(ctx, &page, selection, client.Limit(listPage), client.Continue(page.Continue)); err != nil {
			return err
		}
		for i := range page.Items {
			names[page.Items[i].Name] = true
		}
		if page.Continue == "" {
			return nil
		}
	}
}

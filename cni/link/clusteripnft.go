// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	nlsocket "github.com/mdlayher/netlink"
)

const (
	// elementsAtOnce keeps a message below the 64 KiB that the length of an
	// attribute can tell.
	elementsAtOnce = 256
	// nftBuffer holds a whole transaction, and an acknowledgement of each message.
	nftBuffer = 16 << 20
	// stickyEntries bounds what the kernel learns: one entry a Frontend.
	stickyEntries = 65536
)

// balance has the pod's table say want: `nft list table inet netplane` there.
func (p *pod) balance(had, want *ClusterIPs) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(p.ns)), nftables.WithSockOptions(func(c *nlsocket.Conn) error {
		return errors.Join(c.SetWriteBuffer(nftBuffer), c.SetReadBuffer(nftBuffer))
	}))
	if err != nil {
		return fmt.Errorf("opening nftables socket: %w", err)
	}
	t := &transaction{conn: conn, table: clusterIPTable()}
	switch {
	case had == nil || had.Empty() != want.Empty():
		err = t.replace(want)
	case want.Empty():
		return nil
	default:
		err = t.change(had, want)
	}
	if err == nil && !t.idle {
		err = conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("writing the rules of ClusterIPs: %w", err)
	}
	return nil
}

func clusterIPTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: nftTable}
}

// transaction gathers changes of a pod's table.
type transaction struct {
	conn  *nftables.Conn
	table *nftables.Table
	// idle: there is nothing to change.
	idle bool
}

// replace writes the table anew.
func (t *transaction) replace(want *ClusterIPs) error {
	tables, err := t.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	present := slices.ContainsFunc(tables, func(table *nftables.Table) bool { return table.Name == t.table.Name })
	t.idle = !present && want.Empty()
	if t.idle {
		return nil
	}
	var stuck []stickyEntry
	if present && !want.Empty() {
		stuck = t.stuck()
	}
	t.conn.AddTable(t.table) // so that it can be deleted
	t.conn.DelTable(t.table)
	if want.Empty() {
		return nil
	}
	t.conn.AddTable(t.table)
	for _, f := range ipFamilies() {
		for _, set := range f.sets(t.table) {
			if err := t.conn.AddSet(set, nil); err != nil {
				return err
			}
		}
	}
	t.addBaseChains()
	if err := t.write(&ClusterIPs{}, want); err != nil {
		return err
	}
	for _, f := range ipFamilies() {
		var elements []nftables.SetElement
		for _, entry := range stuck {
			balance := want.Balances[entry.frontend]
			if entry.frontend.Address.Is4() == f.is4() && balance.Sticky > 0 && slices.Contains(balance.Backends, entry.backend) {
				elements = append(elements, nftables.SetElement{Key: entry.frontend.key(), Val: endpoint(entry.backend), Timeout: balance.Sticky})
			}
		}
		if err := t.add(f.sticky(t.table), elements); err != nil {
			return err
		}
	}
	return nil
}

// stickyEntry is what the kernel has learnt: where a pod's connections stick.
type stickyEntry struct {
	frontend Frontend
	backend  netip.AddrPort
}

// stuck reads what the kernel has learnt. If it cannot be read there is none: it
// is forgotten with time anyway.
func (t *transaction) stuck() []stickyEntry {
	var out []stickyEntry
	for _, f := range ipFamilies() {
		elements, err := t.conn.GetSetElements(f.sticky(t.table))
		if err != nil {
			continue
		}
		for _, e := range elements {
			if len(e.Key) != f.size()+8 || len(e.Val) != f.size()+4 {
				continue
			}
			to, _ := netip.AddrFromSlice(e.Key[:f.size()])
			from, _ := netip.AddrFromSlice(e.Val[:f.size()])
			out = append(out, stickyEntry{
				Frontend{to, e.Key[f.size()], binary.BigEndian.Uint16(e.Key[f.size()+4:])},
				netip.AddrPortFrom(from, binary.BigEndian.Uint16(e.Val[f.size():])),
			})
		}
	}
	return out
}

// change writes what differs.
func (t *transaction) change(had, want *ClusterIPs) error {
	t.idle = maps.EqualFunc(had.Balances, want.Balances, equalBalances)
	if t.idle {
		return nil
	}
	return t.write(had, want)
}

// write adds chains first, as elements name them, and removes them last.
func (t *transaction) write(had, want *ClusterIPs) error {
	before, after := pickers(had), pickers(want)
	for _, p := range after {
		if !slices.Contains(before, p) {
			t.addPicker(p)
		}
	}
	for _, f := range ipFamilies() {
		c := compare(&f, had, want)
		for _, part := range []struct {
			set         *nftables.Set
			gone, added []nftables.SetElement
		}{
			{f.frontends(t.table), c.frontends.gone, c.frontends.added}, {f.refused(t.table), c.refused.gone, c.refused.added},
			{f.slots(t.table), c.slots.gone, c.slots.added}, {f.live(t.table), c.live.gone, c.live.added},
		} {
			if err := t.remove(part.set, part.gone); err != nil {
				return err
			}
			if err := t.add(part.set, part.added); err != nil {
				return err
			}
		}
	}
	for _, p := range before {
		if !slices.Contains(after, p) {
			chain := &nftables.Chain{Name: p.name(), Table: t.table}
			t.conn.FlushChain(chain)
			t.conn.DelChain(chain)
		}
	}
	return nil
}

func (t *transaction) add(set *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, elementsAtOnce) {
		if err := t.conn.SetAddElements(set, some); err != nil {
			return err
		}
	}
	return nil
}

func (t *transaction) remove(set *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, elementsAtOnce) {
		if err := t.conn.SetDeleteElements(set, some); err != nil {
			return err
		}
	}
	return nil
}

// key is the Frontend as a concatenation in the kernel's registers: each part
// begins a word of 4 bytes.
func (f Frontend) key() []byte {
	out := append(f.Address.AsSlice(), f.Protocol, 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(out, f.Port), 0, 0)
}

func endpoint(backend netip.AddrPort) []byte {
	return append(binary.BigEndian.AppendUint16(backend.Addr().AsSlice(), backend.Port()), 0, 0)
}

// elements are those of one set that go and come.
type elements struct{ gone, added []nftables.SetElement }

// comparison is what differs between two tables, in one family.
type comparison struct{ frontends, refused, slots, live elements }

func compare(f *ipFamily, had, want *ClusterIPs) comparison {
	var c comparison
	for _, front := range frontendsOf(f, had, want) {
		before, existed := had.Balances[front]
		after, exists := want.Balances[front]
		if existed == exists && equalBalances(before, after) {
			continue
		}
		key := front.key()
		c.verdicts(f, key, existed, exists, &before, &after)
		for i := range max(len(before.Backends), len(after.Backends)) {
			had, has := i < len(before.Backends), i < len(after.Backends)
			if had && has && before.Backends[i] == after.Backends[i] {
				continue
			}
			slot := binary.NativeEndian.AppendUint32(slices.Clone(key), uint32(i))
			if had {
				c.slots.gone = append(c.slots.gone, nftables.SetElement{Key: slot, Val: endpoint(before.Backends[i])})
			}
			if has {
				c.slots.added = append(c.slots.added, nftables.SetElement{Key: slot, Val: endpoint(after.Backends[i])})
			}
		}
		c.sticking(key, &before, &after)
	}
	return c
}

// verdicts say what becomes of a Frontend's connections.
func (c *comparison) verdicts(f *ipFamily, key []byte, existed, exists bool, before, after *Balance) {
	element := func(b *Balance) nftables.SetElement {
		if len(b.Backends) == 0 {
			return nftables.SetElement{Key: key}
		}
		return nftables.SetElement{Key: key, VerdictData: goTo(pickerOf(f, b).name())}
	}
	same := existed && exists && len(before.Backends) == len(after.Backends) && (len(before.Backends) == 0 || before.Sticky == after.Sticky)
	if same {
		return
	}
	if existed {
		to := &c.frontends.gone
		if len(before.Backends) == 0 {
			to = &c.refused.gone
		}
		*to = append(*to, element(before))
	}
	if exists {
		to := &c.frontends.added
		if len(after.Backends) == 0 {
			to = &c.refused.added
		}
		*to = append(*to, element(after))
	}
}

// sticking says which backends a connection may stick to.
func (c *comparison) sticking(key []byte, before, after *Balance) {
	element := func(b netip.AddrPort) nftables.SetElement {
		return nftables.SetElement{Key: slices.Concat(key, endpoint(b))}
	}
	for _, b := range before.Backends {
		if before.Sticky > 0 && (after.Sticky == 0 || !slices.Contains(after.Backends, b)) {
			c.live.gone = append(c.live.gone, element(b))
		}
	}
	for _, b := range after.Backends {
		if after.Sticky > 0 && (before.Sticky == 0 || !slices.Contains(before.Backends, b)) {
			c.live.added = append(c.live.added, element(b))
		}
	}
}

// frontendsOf lists the Frontends of a family in either, sorted.
func frontendsOf(f *ipFamily, had, want *ClusterIPs) []Frontend {
	var out []Frontend
	for _, from := range []*ClusterIPs{had, want} {
		for front := range from.Balances {
			if front.Address.Is4() == f.is4() {
				out = append(out, front)
			}
		}
	}
	slices.SortFunc(out, Frontend.Compare)
	return slices.Compact(out)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table of a pod, in each family:
//   - frontends: ClusterIP . protocol . port -> a picker's chain
//   - refused:   the same of those without backends
//   - slots:     ClusterIP . protocol . port . number -> backend . port
//   - live:      what a connection may stick to, ClusterIP . protocol . port . backend . port
//   - sticky:    what it sticks to, as the kernel has learnt
// and a chain for each number of backends and each stickiness, so that the rules
// are few however many Services there are, and a change is one of elements.

// ipFamily is what differs between IPv4 and IPv6.
type ipFamily struct {
	name     string
	protocol byte
	address  nftables.SetDatatype
	// destination is the offset of the address in the IP header.
	destination uint32
	// base numbers the family's sets within a transaction.
	base uint32
}

func ipFamilies() [2]ipFamily {
	return [2]ipFamily{
		{"ipv4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 16, 0},
		{"ipv6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 24, 5},
	}
}

func (f *ipFamily) is4() bool { return f.protocol == unix.NFPROTO_IPV4 }

// size is that of an address in bytes, words in registers.
func (f *ipFamily) size() int     { return int(f.address.Bytes) }
func (f *ipFamily) words() uint32 { return f.address.Bytes / 4 }

// set declares a set or map. Its number is ours: the library's own counter is
// shared by all transactions, without a lock.
func (f *ipFamily) set(table *nftables.Table, number uint32, name string, key ...nftables.SetDatatype) *nftables.Set {
	key = append([]nftables.SetDatatype{f.address, nftables.TypeInetProto, nftables.TypeInetService}, key...)
	return &nftables.Set{
		Table: table, ID: f.base + number, Name: f.name + "-" + name, Concatenation: true, KeyType: concatenated(key...),
	}
}

func (f *ipFamily) frontends(table *nftables.Table) *nftables.Set {
	s := f.set(table, 1, "frontends")
	s.IsMap, s.DataType = true, nftables.TypeVerdict
	return s
}

func (f *ipFamily) refused(table *nftables.Table) *nftables.Set { return f.set(table, 2, "refused") }

func (f *ipFamily) slots(table *nftables.Table) *nftables.Set {
	s := f.set(table, 3, "slots", nftables.TypeMark) // a number in the host's byte order
	s.IsMap, s.DataType = true, concatenated(f.address, nftables.TypeInetService)
	return s
}

func (f *ipFamily) live(table *nftables.Table) *nftables.Set {
	return f.set(table, 4, "live", f.address, nftables.TypeInetService)
}

func (f *ipFamily) sticky(table *nftables.Table) *nftables.Set {
	s := f.set(table, 5, "sticky")
	s.IsMap, s.DataType = true, concatenated(f.address, nftables.TypeInetService)
	s.Dynamic, s.HasTimeout, s.Size = true, true, stickyEntries
	return s
}

func (f *ipFamily) sets(table *nftables.Table) []*nftables.Set {
	return []*nftables.Set{f.frontends(table), f.refused(table), f.slots(table), f.live(table), f.sticky(table)}
}

// concatenated fails for more than five types only, which none here is.
func concatenated(types ...nftables.SetDatatype) nftables.SetDatatype {
	out, _ := nftables.ConcatSetType(types...)
	return out
}

// Compare orders Frontends.
func (f Frontend) Compare(g Frontend) int {
	return cmp.Or(f.Address.Compare(g.Address), cmp.Compare(f.Protocol, g.Protocol), cmp.Compare(f.Port, g.Port))
}

func equalBalances(a, b Balance) bool {
	return a.Sticky == b.Sticky && slices.Equal(a.Backends, b.Backends)
}

// picker is a chain that chooses one of some backends.
type picker struct {
	family   ipFamily
	backends int
	sticky   time.Duration
}

func pickerOf(f *ipFamily, b *Balance) picker { return picker{*f, len(b.Backends), b.Sticky} }

// pickers are the chains that a table needs, sorted.
func pickers(c *ClusterIPs) []picker {
	families := ipFamilies()
	var out []picker
	for front, balance := range c.Balances {
		if len(balance.Backends) == 0 {
			continue
		}
		f := &families[0]
		if !front.Address.Is4() {
			f = &families[1]
		}
		out = append(out, pickerOf(f, &balance))
	}
	slices.SortFunc(out, func(a, b picker) int {
		return cmp.Or(cmp.Compare(a.family.name, b.family.name), cmp.Compare(a.backends, b.backends), cmp.Compare(a.sticky, b.sticky))
	})
	return slices.Compact(out)
}

func (p picker) name() string {
	if p.sticky == 0 {
		return fmt.Sprintf("%s-%d", p.family.name, p.backends)
	}
	return fmt.Sprintf("%s-%d-sticky-%s", p.family.name, p.backends, p.sticky)
}

func goTo(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

// register is one of the 16 words that hold a rule's values (NFT_REG32_00 to _15).
func register(word uint32) uint32 { return unix.NFT_REG32_00 + word }

// addBaseChains are where a pod's packets meet the maps.
func (t *transaction) addBaseChains() {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return t.conn.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: kind, Hooknum: hook, Priority: &priority})
	}
	// Before the translation: what it leaves alone must not leave by another way.
	refuse := chain("refuse", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest-10)
	output := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest)
	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	for _, f := range ipFamilies() {
		refused := slices.Concat(onlyNew(), f.matches(), f.destinationKey(), []expr.Any{lookup(f.refused(t.table))})
		// An ICMP message would find the socket locked by connect(2), and count for
		// nothing until the next SYN, a second later.
		t.rule(refuse, onlyTCP(), refused, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		t.rule(refuse, refused, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})
		t.rule(output, f.matches(), f.destinationKey(), find(f.frontends(t.table), unix.NFT_REG_VERDICT))
		// A source that was chosen before the destination was known, or by the
		// program, may be none that the backend can answer to.
		t.rule(postrouting, notLoopback(), f.matches(), f.originalKey(), find(f.slots(t.table), register(f.words()+3)), &expr.Masq{})
	}
}

func (t *transaction) rule(chain *nftables.Chain, parts ...any) {
	var exprs []expr.Any
	for _, part := range parts {
		switch part := part.(type) {
		case []expr.Any:
			exprs = append(exprs, part...)
		case expr.Any:
			exprs = append(exprs, part)
		}
	}
	t.conn.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: exprs})
}

func onlyNew() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func onlyTCP() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}}}
}

// notLoopback leaves out what a pod sends to itself: there is nothing to mend.
func notLoopback() []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo}}
}

func (f *ipFamily) matches() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.protocol}}}
}

// destinationKey loads a packet's destination as Frontend.key has it. The port
// is at the same place in TCP, UDP and SCTP.
func (f *ipFamily) destinationKey() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: register(0), Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.address.Bytes},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register(f.words())},
		&expr.Payload{DestRegister: register(f.words() + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// originalKey loads the slot 0 of where a connection was opened to. The kernel
// takes four words for the address, in either family.
func (f *ipFamily) originalKey() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDST, Register: register(0)},
		&expr.Ct{Key: expr.CtKeyPROTOCOL, Register: register(f.words())},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: register(f.words() + 1)},
		&expr.Immediate{Register: register(f.words() + 2), Data: make([]byte, 4)},
	}
}

// lookup goes on if what begins at the first word is in a set.
func lookup(set *nftables.Set) expr.Any {
	return &expr.Lookup{SourceRegister: register(0), SetName: set.Name, SetID: set.ID}
}

// find goes on if what begins at the first word is in a map, with its value.
func find(set *nftables.Set, to uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register(0), DestRegister: to, IsDestRegSet: true, SetName: set.Name, SetID: set.ID}
}

// addPicker adds the chain that chooses.
func (t *transaction) addPicker(p picker) {
	f := &p.family
	chain := t.conn.AddChain(&nftables.Chain{Name: p.name(), Table: t.table})
	afterKey := register(f.words() + 2)
	if p.sticky > 0 {
		stuck := slices.Concat(f.destinationKey(), []expr.Any{find(f.sticky(t.table), afterKey)})
		t.rule(chain, stuck, lookup(f.live(t.table)), t.learn(p, unix.NFT_DYNSET_OP_UPDATE, afterKey), f.translate(afterKey))
		// It sticks to a backend that is gone: an update would keep that.
		t.rule(chain, stuck, t.learn(p, dynsetDelete, afterKey))
	}
	chosen := register(f.words() + 3)
	pick := slices.Concat(f.destinationKey(), []expr.Any{
		&expr.Numgen{Register: afterKey, Modulus: uint32(p.backends), Type: unix.NFT_NG_RANDOM},
		find(f.slots(t.table), chosen),
	})
	if p.sticky > 0 {
		pick = append(pick, t.learn(p, unix.NFT_DYNSET_OP_UPDATE, chosen))
	}
	t.rule(chain, pick, f.translate(chosen))
}

// dynsetDelete is NFT_DYNSET_OP_DELETE (linux/netfilter/nf_tables.h).
const dynsetDelete = 2

// learn has the kernel note, or forget, which backend a Frontend sticks to.
func (t *transaction) learn(p picker, operation, backend uint32) expr.Any {
	set := p.family.sticky(t.table)
	out := &expr.Dynset{SrcRegKey: register(0), SrcRegData: backend, SetName: set.Name, SetID: set.ID, Operation: operation}
	if operation != dynsetDelete {
		out.Timeout = p.sticky
	}
	return out
}

// translate makes a backend the destination.
func (f *ipFamily) translate(backend uint32) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.protocol), RegAddrMin: backend, RegProtoMin: backend + f.words()}
}

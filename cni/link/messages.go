// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// skipStats (RTEXT_FILTER_SKIP_STATS in linux/rtnetlink.h) keeps the counters of
// a link, most of the answer, out of a look-up.
const skipStats = 1 << 3

func newRequest(kind, flags int, what string) *request {
	return &request{NetlinkRequest: nl.NewNetlinkRequest(kind, flags), what: what}
}

func (r *request) attr(kind int, value []byte) *nl.RtAttr {
	attr := nl.NewRtAttr(kind, value)
	r.AddData(attr)
	return attr
}

func (r *request) number(kind int, value uint32) { r.attr(kind, nl.Uint32Attr(value)) }

// lookUp asks for the link of a name.
func lookUp(name string) *request {
	r := newRequest(unix.RTM_GETLINK, 0, "looking for "+name)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.number(unix.IFLA_EXT_MASK, skipStats)
	r.attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
	return r
}

// link is what a look-up found.
func (r *request) link() (netlink.Link, error) {
	if err := r.failure(); err != nil {
		return nil, err
	}
	return netlink.LinkDeserialize(nil, r.answer)
}

// index is what link finds, without reading the rest.
func (r *request) index() (int, error) {
	if err := r.failure(); err != nil {
		return 0, err
	}
	if len(r.answer) < unix.SizeofIfInfomsg {
		return 0, fmt.Errorf("%s: short answer", r.what)
	}
	return int(nl.DeserializeIfInfomsg(r.answer).Index), nil
}

// find looks links up by their names, all at once.
func (c *conn) find(names []string) ([]*request, error) {
	requests := make([]*request, len(names))
	for i, name := range names {
		requests[i] = lookUp(name)
	}
	return requests, c.run(requests)
}

// change asks for a change of a link that exists, by index or, if that is 0, by
// a name that is added.
func change(index int, flags uint32, what string) *request {
	r := newRequest(unix.RTM_NEWLINK, 0, what)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, flags
	r.AddData(msg)
	return r
}

func setUp(index int) *request { return change(index, unix.IFF_UP, "setting it up") }

// birth asks for a link that is born in the pod's namespace, by a message to
// the host's.
func (p *pod) birth(spec *Interface, kind string, parent netlink.Link, mac net.HardwareAddr) (*request, *nl.RtAttr) {
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "")
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	for _, attr := range p.born(spec, mac) {
		r.AddData(attr)
	}
	r.number(unix.IFLA_LINK, uint32(parent.Attrs().Index))
	return r, r.info(kind)
}

// info adds what is the kind's own and returns where its data go.
func (r *request) info(kind string) *nl.RtAttr {
	info := r.attr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	return info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
}

// born are the attributes of a pod's end of an interface.
func (p *pod) born(spec *Interface, mac net.HardwareAddr) []*nl.RtAttr {
	out := []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(spec.Name)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(spec.MTU))),
		nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(p.ns))),
	}
	if mac != nil {
		out = append(out, nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	}
	return out
}

// withoutLinkLocal has a link of the host take no address of its own by IPv6.
func withoutLinkLocal(name string) *request {
	r := change(0, 0, "keeping "+name+" without addresses")
	r.attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
	family := r.attr(unix.IFLA_AF_SPEC, nil).AddRtAttr(unix.AF_INET6, nil)
	family.AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(nl.IN6_ADDR_GEN_MODE_NONE))
	return r
}

// addAddress skips duplicate address detection: addressing makes each address
// unique, and the wait for it takes seconds.
func addAddress(index int, prefix netip.Prefix) *request {
	r := newRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, fmt.Sprintf("adding address %s", prefix))
	addr := prefix.Addr()
	msg := nl.NewIfAddrmsg(familyOf(addr))
	msg.Index, msg.Prefixlen = uint32(index), uint8(prefix.Bits())
	r.AddData(msg)
	r.attr(unix.IFA_LOCAL, addr.AsSlice())
	r.attr(unix.IFA_ADDRESS, addr.AsSlice())
	switch {
	case addr.Is6():
		msg.Flags = unix.IFA_F_NODAD
	case prefix.Bits() < 31: // RFC 3021: a smaller subnet has no broadcast address
		last := ipNet(prefix)
		for i := range last.IP {
			last.IP[i] |= ^last.Mask[i]
		}
		r.attr(unix.IFA_BROADCAST, last.IP)
	}
	return r
}

// addRoute asks for a route in a table, and is content if it is there.
func addRoute(index, table int, route Route) *request {
	r := newRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, fmt.Sprintf("adding route to %s", route.To))
	r.mayExist = true
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Protocol = uint8(familyOf(route.To.Addr())), uint8(route.To.Bits()), routeProtocol
	r.AddData(msg)
	if table != unix.RT_TABLE_MAIN {
		r.what += fmt.Sprintf(" to table %d", table)
		msg.Table = unix.RT_TABLE_UNSPEC
		r.number(unix.RTA_TABLE, uint32(table))
	}
	r.attr(unix.RTA_DST, route.To.Addr().AsSlice())
	if route.Via.IsValid() {
		r.attr(unix.RTA_GATEWAY, route.Via.AsSlice())
	} else if route.To.Addr().Is4() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	r.number(unix.RTA_OIF, uint32(index))
	return r
}

// addRule has what leaves from an address look into a table, deleteRule no more.
func addRule(from netip.Addr, table int) *request {
	r := rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, from, table)
	r.what = fmt.Sprintf("directing what leaves from %s to table %d", from, table)
	return r
}

func deleteRule(from netip.Addr, table int) *request {
	r := rule(unix.RTM_DELRULE, 0, from, table)
	r.what = fmt.Sprintf("removing the rule of %s", from)
	return r
}

func rule(kind, flags int, from netip.Addr, table int) *request {
	r := newRequest(kind, flags, "")
	r.mayExist = true
	msg := &nl.RtMsg{RtMsg: unix.RtMsg{ // a struct fib_rule_hdr
		Family: uint8(familyOf(from)), Src_len: uint8(from.BitLen()), Type: unix.FR_ACT_TO_TBL,
	}}
	r.AddData(msg)
	r.attr(nl.FRA_SRC, from.AsSlice())
	r.number(nl.FRA_PRIORITY, sourcePriority)
	r.number(nl.FRA_TABLE, uint32(table))
	return r
}

// regroup puts a link into a group, and deleteGroup removes all links of one.
func regroup(index int, group uint32) *request {
	r := change(index, 0, "grouping links")
	r.number(unix.IFLA_GROUP, group)
	return r
}

func deleteGroup(group uint32) *request {
	r := newRequest(unix.RTM_DELLINK, 0, "removing links")
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.number(unix.IFLA_GROUP, group)
	return r
}

func deleteIndex(index int, name string) *request {
	r := newRequest(unix.RTM_DELLINK, 0, "removing "+name)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	return r
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netplane/netplane/cni/link"
)

// The ClusterIPs of a Service, of both families; nothing has them.
const vip, vip6 = "10.96.0.7", "fd00:10:96::7"

// flock is a node with pods on one network: a client, which also has the
// cluster's eth0 and its default routes by it, and servers.
type flock struct {
	*testing.T
	links   *link.Links
	client  *space
	servers map[string]*space // by the last octet of their addresses
	has     *link.ClusterIPs
}

func newFlock(t *testing.T, servers ...string) *flock {
	t.Helper()
	node := wired(t, "node")[0]
	f := &flock{T: t, links: openLinks(t, node), client: newSpace(t, "client"), servers: map[string]*space{}}
	bridge, err := f.links.EnsureBridge(t.Context(), "eth1")
	must(t, err)
	router := newSpace(t, "router")
	must(t, router.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod", MTU: 1500, TxQLen: -1}, PeerName: "eth0", PeerMTU: 1500, PeerNamespace: netlink.NsFd(f.client.ns), PeerTxQLen: -1}))
	for _, s := range []struct {
		space     *space
		dev, last string
	}{{router, "pod", "1"}, {f.client, "eth0", "9"}} {
		for _, address := range []string{"10.244.1." + s.last + "/24", "fd00:10:244::" + s.last + "/64"} {
			must(t, s.space.AddrAdd(s.space.link(t, s.dev), &netlink.Addr{IPNet: ipNet(address), Flags: unix.IFA_F_NODAD}))
		}
		s.space.up(t, s.dev)
	}
	for _, gateway := range []string{"10.244.1.1", "fd00:10:244::1"} {
		must(t, f.client.RouteAdd(&netlink.Route{LinkIndex: f.client.link(t, "eth0").Attrs().Index, Gw: net.ParseIP(gateway)}))
	}
	for _, last := range append(servers, "9") {
		spec := specOf(link.KindVeth, "net1", last)
		spec.Parent = bridge
		pod := f.client
		if last != "9" {
			pod = newSpace(t, "server")
			f.servers[last] = pod
		}
		must(t, f.links.Add(t.Context(), pod.path, spec))
	}
	return f
}

// addrOf is a pod's address on the network, of vip's family.
func addrOf(last, vip string) string {
	if netip.MustParseAddr(vip).Is4() {
		return "10.10.0." + last
	}
	return "fd00:10:10::a0a:" + last
}

// offer makes the pods behind both ClusterIPs, at port 80, those of lasts.
func offer(protocol uint8, sticky time.Duration, lasts ...string) *link.ClusterIPs {
	out := &link.ClusterIPs{Balances: map[link.Frontend]link.Balance{}, Routes: map[netip.Addr]link.ClusterIPRoute{}}
	for _, to := range []string{vip, vip6} {
		addr := netip.MustParseAddr(to)
		balance := link.Balance{Sticky: sticky}
		for _, last := range lasts {
			balance.Backends = append(balance.Backends, netip.AddrPortFrom(netip.MustParseAddr(addrOf(last, to)), 8080))
		}
		out.Balances[link.Frontend{Address: addr, Protocol: protocol, Port: 80}] = balance
		out.Routes[addr] = link.ClusterIPRoute{Interface: "net1", Source: netip.MustParseAddr(addrOf("9", to))}
	}
	return out
}

func (f *flock) set(want *link.ClusterIPs) {
	f.Helper()
	must(f.T, f.links.SetClusterIPs(f.Context(), f.client.path, f.has, want))
	f.has = want
}

// serve has a pod answer every connection, and every packet, with its last octet
// and the address that it saw.
func (f *flock) serve(pod *space, last string) {
	f.Helper()
	var listener net.Listener
	var packets net.PacketConn
	must(f.T, pod.in(func() (err error) {
		if listener, err = net.Listen("tcp", ":8080"); err == nil {
			packets, err = net.ListenPacket("udp", ":8080")
		}
		return err
	}))
	f.Cleanup(func() { _, _ = listener.Close(), packets.Close() })
	answer := func(from net.Addr) []byte {
		host, _, _ := net.SplitHostPort(from.String())
		return []byte(last + " " + host)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for buf := make([]byte, 16); ; {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					_, _ = conn.Write(answer(conn.RemoteAddr()))
				}
			}()
		}
	}()
	go func() {
		for buf := make([]byte, 16); ; {
			_, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(answer(from), from)
		}
	}()
}

func (f *flock) serveAll() {
	for last, pod := range f.servers {
		f.serve(pod, last)
	}
}

func (f *flock) dial(network, to string) (conn net.Conn, err error) {
	f.Helper()
	err = f.client.in(func() (err error) {
		conn, err = net.DialTimeout(network, net.JoinHostPort(to, "80"), 3*time.Second)
		return err
	})
	return conn, err
}

// ask sends on a connection and returns the answer.
func ask(conn net.Conn) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("?")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

func (f *flock) askNew(network, to string) (string, error) {
	f.Helper()
	conn, err := f.dial(network, to)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return ask(conn)
}

// answers opens connections and counts who answers them.
func (f *flock) answers(network, to string, connections int) map[string]int {
	f.Helper()
	out := map[string]int{}
	for range connections {
		answer, err := f.askNew(network, to)
		must(f.T, err)
		out[answer]++
	}
	return out
}

func protocolOf(network string) uint8 {
	if network == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

func eachWay(t *testing.T, run func(t *testing.T, network, to string)) {
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []string{vip, vip6} {
			t.Run(network+" "+to, func(t *testing.T) { run(t, network, to) })
		}
	}
}

func TestClusterIPsAreBalancedInThePod(t *testing.T) {
	eachWay(t, func(t *testing.T, network, to string) {
		f := newFlock(t, "5", "6", "7")
		f.serveAll()
		f.set(offer(protocolOf(network), 0, "5", "6", "7"))
		got := f.answers(network, to, 90)
		want := []string{"5 " + addrOf("9", to), "6 " + addrOf("9", to), "7 " + addrOf("9", to)}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
			t.Errorf("who answered, and whom they saw: %s", diff)
		}
		t.Log(got)
		f.set(offer(protocolOf(network), 0, "5", "7"))
		if got := f.answers(network, to, 30); got[want[1]] > 0 || len(got) != 2 {
			t.Errorf("without 6: %v", got)
		}
		f.set(offer(protocolOf(network), 0, "6"))
		if diff := cmp.Diff(map[string]int{want[1]: 5}, f.answers(network, to, 5)); diff != "" {
			t.Errorf("with 6 alone: %s", diff)
		}
	})
}

// A port of the ClusterIP is another's, so that there is no route: the source is
// eth0's until the destination is known.
func TestClusterIPsWithoutRouteAreAnswered(t *testing.T) {
	eachWay(t, func(t *testing.T, network, to string) {
		f := newFlock(t, "5")
		f.serveAll()
		want := offer(protocolOf(network), 0, "5")
		want.Routes = nil
		f.set(want)
		if diff := cmp.Diff(map[string]int{"5 " + addrOf("9", to): 3}, f.answers(network, to, 3)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestClusterIPsReachThePodItself(t *testing.T) {
	eachWay(t, func(t *testing.T, network, to string) {
		f := newFlock(t)
		f.serve(f.client, "9")
		f.set(offer(protocolOf(network), 0, "9"))
		if diff := cmp.Diff(map[string]int{"9 " + addrOf("9", to): 3}, f.answers(network, to, 3)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestConnectionsStickToABackend(t *testing.T) {
	eachWay(t, func(t *testing.T, network, to string) {
		f := newFlock(t, "5", "6", "7")
		f.serveAll()
		protocol := protocolOf(network)
		f.set(offer(protocol, time.Hour, "5", "6", "7"))
		first := f.answers(network, to, 20)
		if len(first) != 1 {
			t.Fatalf("20 connections were answered by %v", first)
		}
		chosen := slices.Collect(maps.Keys(first))[0]
		stays := func(when string) {
			t.Helper()
			if diff := cmp.Diff(map[string]int{chosen: 20}, f.answers(network, to, 20)); diff != "" {
				t.Errorf("%s: %s", when, diff)
			}
		}
		others := slices.DeleteFunc([]string{"5", "6", "7"}, func(last string) bool { return last == chosen[:1] })
		f.set(offer(protocol, time.Hour, chosen[:1], others[0]))
		stays("another has gone")
		f.set(offer(protocol, time.Hour, others[1], chosen[:1], others[0]))
		stays("another has come")
		f.has = nil // as after a restart of the agent
		f.set(offer(protocol, time.Hour, "5", "6", "7"))
		stays("all rules were written anew")

		f.set(offer(protocol, time.Hour, others...))
		next := f.answers(network, to, 20)
		if len(next) != 1 || next[chosen] > 0 {
			t.Errorf("20 connections after the backend has gone were answered by %v", next)
		}
	})
}

func TestConnectionsStickNoLongerThanTheyShall(t *testing.T) {
	f := newFlock(t, "5", "6")
	f.serveAll()
	const sticky = 200 * time.Millisecond
	f.set(offer(unix.IPPROTO_TCP, sticky, "5", "6"))
	before := slices.Collect(maps.Keys(f.answers("tcp", vip, 1)))[0]
	eventually(t, "another backend to be chosen after a pause", func() bool {
		time.Sleep(2 * sticky)
		return f.answers("tcp", vip, 1)[before] == 0
	})
}

func TestConnectionsWithoutBackendAreRefusedAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, network, to string) {
		f := newFlock(t, "5")
		f.serveAll()
		refused := func(when string) {
			t.Helper()
			eventually(t, when+", an answer to the first packet", func() bool {
				began := time.Now()
				answer, err := f.askNew(network, to)
				// A UDP sender may be told by the system call itself, which has a code of its own.
				if !errors.Is(err, unix.ECONNREFUSED) && (network != "udp" || !errors.Is(err, unix.EPERM)) {
					t.Fatalf("%s: answer %q, error %v", when, answer, err)
				}
				return time.Since(began) < time.Second // then TCP sends a second one
			})
		}
		f.set(offer(protocolOf(network), 0))
		refused("there never was one")
		f.set(offer(protocolOf(network), 0, "5"))
		f.answers(network, to, 1)
		f.set(offer(protocolOf(network), time.Hour))
		refused("the last has gone")
	})
}

// A flow that never pauses would be sent to a backend that is gone for ever.
func TestUDPFlowsMoveOn(t *testing.T) {
	for _, to := range []string{vip, vip6} {
		t.Run(to, func(t *testing.T) {
			f := newFlock(t, "5", "6")
			f.serveAll()
			conn, err := f.dial("udp", to)
			must(t, err)
			defer func() { _ = conn.Close() }()
			_, _ = conn.Write([]byte("?")) // before there are rules: it leaves by eth0
			for _, last := range []string{"5", "6", "5"} {
				f.set(offer(unix.IPPROTO_UDP, 0, last))
				answer, err := ask(conn)
				must(t, err)
				// The socket has the source that it was given before there was a route.
				if answer[:1] != last {
					t.Errorf("%s answers, want %s", answer, last)
				}
			}
			f.has = nil // the last backend went while no agent ran
			f.set(offer(unix.IPPROTO_UDP, 0))
			if answer, err := ask(conn); err == nil {
				t.Errorf("without backends %s answers", answer)
			}
		})
	}
}

func TestEstablishedConnectionsStay(t *testing.T) {
	f := newFlock(t, "5", "6")
	f.serveAll()
	f.set(offer(unix.IPPROTO_TCP, 0, "5"))
	conn, err := f.dial("tcp", vip)
	must(t, err)
	defer func() { _ = conn.Close() }()
	want, err := ask(conn)
	must(t, err)
	for _, next := range [][]string{{"6"}, {}, {"6", "5"}} {
		f.set(offer(unix.IPPROTO_TCP, 0, next...))
		if got, err := ask(conn); err != nil || got != want {
			t.Errorf("with backends %v it answers %q (%v), want %q", next, got, err, want)
		}
	}
}

func TestRulesThatThePodRemovedComeBack(t *testing.T) {
	f := newFlock(t, "5", "6")
	f.serveAll()
	f.set(offer(unix.IPPROTO_TCP, 0, "5"))
	conn, err := nftables.New(nftables.WithNetNSFd(int(f.client.ns)))
	must(t, err)
	conn.FlushRuleset()
	must(t, conn.Flush())
	want := offer(unix.IPPROTO_TCP, 0, "6")
	if err := f.links.SetClusterIPs(t.Context(), f.client.path, f.has, want); err == nil {
		t.Error("a change of rules that are gone succeeds")
	}
	must(t, f.links.SetClusterIPs(t.Context(), f.client.path, nil, want))
	if got := f.answers("tcp", vip, 3); got["6 "+addrOf("9", vip)] != 3 {
		t.Errorf("answered by %v", got)
	}
}

func TestRulesThatNobodyNeedsLeaveNothing(t *testing.T) {
	for _, known := range []bool{true, false} {
		t.Run(fmt.Sprintf("known=%t", known), func(t *testing.T) {
			f := newFlock(t)
			routes := func() []string {
				return slices.Concat(f.client.routes(t, netlink.FAMILY_V4), f.client.routes(t, netlink.FAMILY_V6))
			}
			before := routes()
			conn, err := nftables.New(nftables.WithNetNSFd(int(f.client.ns)))
			must(t, err)
			// Of somebody else, such as a service mesh.
			conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "mesh"})
			must(t, conn.Flush())
			f.set(offer(unix.IPPROTO_TCP, time.Hour, "5", "6"))
			if len(routes()) != len(before)+2 {
				t.Errorf("routes %v", routes())
			}
			if !known {
				f.has = nil
			}
			f.set(&link.ClusterIPs{})
			if diff := cmp.Diff(before, routes()); diff != "" {
				t.Errorf("routes: %s", diff)
			}
			tables, err := conn.ListTables()
			must(t, err)
			var names []string
			for _, table := range tables {
				names = append(names, table.Name)
			}
			if diff := cmp.Diff([]string{"mesh"}, names); diff != "" {
				t.Errorf("tables: %s", diff)
			}
		})
	}
}

func TestClusterIPsOfManyBackendsFit(t *testing.T) {
	f := newFlock(t, "5")
	f.serveAll()
	many := func(services, backends int) *link.ClusterIPs {
		out := offer(unix.IPPROTO_TCP, 0, "5")
		for s := range services {
			addr := netip.AddrFrom4([4]byte{10, 97, byte(s >> 8), byte(s)})
			balance := link.Balance{Sticky: time.Duration(s%2) * time.Hour}
			for b := range backends + s%50 {
				balance.Backends = append(balance.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 10, byte(b >> 8), byte(b)}), 8080))
			}
			out.Balances[link.Frontend{Address: addr, Protocol: unix.IPPROTO_TCP, Port: 80}] = balance
			out.Routes[addr] = link.ClusterIPRoute{Interface: "net1", Source: netip.MustParseAddr("10.10.0.9")}
		}
		return out
	}
	for _, size := range [][2]int{{300, 100}, {1, 5000}, {300, 50}} {
		began := time.Now()
		f.set(many(size[0], size[1]))
		t.Logf("%d Services of %d endpoints: %s", size[0], size[1], time.Since(began))
		f.answers("tcp", vip, 2)
	}
}

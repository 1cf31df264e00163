// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// buildReference builds plugins of the CNI project, of the version that the node
// image has, and returns their folder.
var buildReference = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "np-ref")
	if err != nil {
		return "", err
	}
	const module = "github.com/containernetworking/plugins/plugins/"
	command := exec.Command("go", "build", "-mod=readonly", "-o", dir, module+"main/macvlan", module+"main/bridge", module+"ipam/static")
	command.Dir = filepath.Join("..", "..", "nodeimage", "plugins")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the reference plugins: %w: %s", err, out)
	}
	return dir, nil
})

// reference is a node on which a reference plugin makes the pods' interfaces.
type reference struct {
	node *space
	pod  *space
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

// newReference has a plugin's configuration give the pod's interface the MAC and
// the addresses that ours has.
func newReference(t *testing.T, node *space, version, ifName string, conf map[string]any, ours *current.Result) *reference {
	t.Helper()
	bin, err := buildReference()
	must(t, err)
	var mac string
	var addresses []map[string]any
	for i, iface := range ours.Interfaces {
		if iface.Name != ifName || iface.Sandbox == "" {
			continue
		}
		mac = iface.Mac
		for _, ip := range ours.IPs {
			if ip.Interface != nil && *ip.Interface == i {
				addresses = append(addresses, map[string]any{"address": ip.Address.String()})
			}
		}
	}
	conf["ipam"] = map[string]any{"type": "static", "addresses": addresses, "routes": []map[string]any{{"dst": "192.0.2.0/24", "gw": "10.10.0.1"}, {"dst": "2001:db8::/32", "gw": "fd00:10:10::1"}}}
	conf["capabilities"] = map[string]bool{"mac": true}
	raw, err := json.Marshal(map[string]any{"cniVersion": version, "name": "reference", "plugins": []any{conf}})
	must(t, err)
	r := &reference{node: node, pod: newSpace(t, "reference"), cni: libcni.NewCNIConfig([]string{bin}, nil)}
	r.list, err = libcni.NetworkConfFromBytes(raw)
	must(t, err)
	r.rt = &libcni.RuntimeConf{ContainerID: "reference", NetNS: r.pod.path, IfName: ifName, CapabilityArgs: map[string]any{"mac": mac}}
	return r
}

func (r *reference) run(f func(ctx context.Context) error) error {
	return r.node.in(func() error { return f(context.Background()) })
}

func (r *reference) add() (result *current.Result, err error) {
	err = r.run(func(ctx context.Context) error {
		raw, err := r.cni.AddNetworkList(ctx, r.list, r.rt)
		if err == nil {
			result, err = current.GetResult(raw)
		}
		return err
	})
	return result, err
}

func (r *reference) del() error {
	return r.run(func(ctx context.Context) error { return r.cni.DelNetworkList(ctx, r.list, r.rt) })
}

func (r *reference) check() error {
	return r.run(func(ctx context.Context) error { return r.cni.CheckNetworkList(ctx, r.list, r.rt) })
}

func (r *reference) gc() error {
	return r.run(func(ctx context.Context) error {
		return r.cni.GCNetworkList(ctx, r.list, &libcni.GCArgs{})
	})
}

// text renders links, addresses and routes of a namespace much as ip does. What
// may differ between two plugins that do the same is left out: indexes, the
// routes' protocol, the random name of a veth's end in the host, its queue's
// length, which it does not use, and its link-local address, of which a bridge
// port has no use. Addresses are rendered
// when the kernel has settled them.
func (s *space) text(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	links, err := s.LinkList()
	must(t, err)
	byIndex := map[int]string{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = s.label(l)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return strings.Compare(s.label(a), s.label(b)) })
	for _, l := range links {
		a := l.Attrs()
		fmt.Fprintf(&out, "%s: %s mtu %d mac %s up %t", s.label(l), l.Type(), a.MTU, a.HardwareAddr, a.RawFlags&unix.IFF_UP != 0)
		if m, ok := l.(*netlink.Macvlan); ok {
			fmt.Fprintf(&out, " mode %d parent-elsewhere %t", m.Mode, byIndex[a.ParentIndex] == "")
		}
		if a.MasterIndex != 0 {
			fmt.Fprintf(&out, " master %s", byIndex[a.MasterIndex])
		}
		if s.label(l) == hostEndLabel {
			fmt.Fprintln(&out)
		} else {
			fmt.Fprintf(&out, " qlen %d\n", a.TxQLen)
			out.WriteString(s.addressText(t, l))
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		out.WriteString(s.routeText(t, family, byIndex))
	}
	return out.String()
}

const hostEndLabel = "host-end"

// label is a link's name, but for the ends of pods' veths: they are ports of a
// bridge whose other end is in another namespace, and no NIC.
func (s *space) label(l netlink.Link) string {
	if a := l.Attrs(); l.Type() == "veth" && a.MasterIndex != 0 && a.Name != "eth1" {
		return hostEndLabel
	}
	return l.Attrs().Name
}

func (s *space) addressText(t *testing.T, l netlink.Link) string {
	t.Helper()
	var lines []string
	eventually(t, "the kernel has settled the addresses of "+l.Attrs().Name, func() bool {
		addresses, err := s.AddrList(l, netlink.FAMILY_ALL)
		must(t, err)
		lines = nil
		for _, a := range addresses {
			lines = append(lines, fmt.Sprintf("  %s brd %v scope %d lifetime %d\n", a.IPNet, a.Broadcast, a.Scope, a.ValidLft))
		}
		return !slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 })
	})
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (s *space) routeText(t *testing.T, family int, byIndex map[int]string) string {
	t.Helper()
	routes, err := s.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	must(t, err)
	var lines []string
	for _, r := range routes {
		dev := byIndex[r.LinkIndex]
		if dev == hostEndLabel || dev == "lo" {
			continue
		}
		lines = append(lines, fmt.Sprintf("route %v via %v dev %s src %v metric %d table %d scope %d type %d\n", r.Dst, r.Gw, dev, r.Src, r.Priority, r.Table, r.Scope, r.Type))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

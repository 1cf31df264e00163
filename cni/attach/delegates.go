// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// Delegates finds the CNI configuration of Networks whose plugin is not built in.
type Delegates interface {
	// Configuration is the caller's own. The error is for a reader of the pod's events.
	Configuration(network *v1alpha1.Network) (*delegate.Conf, error)
	// Network is the node's own configuration of the network of that very name;
	// the error is fs.ErrNotExist if there is none.
	Network(name string) (*delegate.Conf, error)
	// Installed says which plugins of a configuration the node lacks.
	Installed(conf *delegate.Conf) error
}

// Foreign looks after interfaces in pods that other plugins have made.
type Foreign interface {
	// Adopt tells of an interface, and puts the default routes over one beside eth0
	// behind all others; it fails if there is no such interface.
	Adopt(ctx context.Context, netns, name string, beside bool) (link.Adopted, error)
	// TakeDefault makes these routers of the interface the pod's only default
	// routes of their families; keep goes on by the former ones.
	TakeDefault(ctx context.Context, netns, name string, hops []netip.Addr, keep []netip.Prefix) error
}

// capabilityMAC is by what name plugins are given a MAC address (NPWG v1.3,
// 4.1.2.1.4; CNI CONVENTIONS.md).
const capabilityMAC = "mac"

// delegated: another plugin makes the interface.
func (w *wanted) delegated() bool { return w.conf != nil }

// builtIn leaves out the interfaces that delegates make.
func builtIn(all []wanted) []wanted {
	if !slices.ContainsFunc(all, func(w wanted) bool { return w.delegated() }) {
		return all
	}
	var out []wanted
	for i := range all {
		if !all[i].delegated() {
			out = append(out, all[i])
		}
	}
	return out
}

// findDelegate finds the configuration and holds the request to what can be
// told of it before it is executed.
func (s *Server) findDelegate(w *wanted, topology Topology) error {
	n := w.network
	if s.deps.Delegates == nil {
		return invalid("network %q: this agent runs no plugin %q", n.Name, n.Spec.Plugin)
	}
	if _, message, refused := topology.Refusal(n.Name); refused {
		return retry("this node cannot serve network %q: %s", n.Name, message)
	}
	if len(topology.Parents(n.Spec.PhysicalNet)) == 0 {
		return retry("no NIC of this node backs physical network %q of network %q", n.Spec.PhysicalNet, n.Name)
	}
	conf, err := s.deps.Delegates.Configuration(n)
	if err != nil {
		return retry("network %q: %v", n.Name, err)
	}
	w.conf = conf
	switch {
	case w.request.MAC != "" && !conf.Capable(capabilityMAC):
		return invalid("network %q: no plugin of CNI network %q declares the capability mac, so that the pod's mac would have no effect: write it into spec.pluginConfig", n.Name, conf.Name())
	case w.request.Fixed() && w.plan == nil:
		return invalid("network %q has no subnet, so that plugin %q gives its addresses: a pod cannot ask for one", n.Name, n.Spec.Plugin)
	}
	return nil
}

// delegates are what the binary is to execute, that on eth0 first: it takes the
// place of the cluster's default network.
func delegates(all []wanted) ([]wire.Delegate, error) {
	var out []wire.Delegate
	for i := range all {
		w := &all[i]
		if !w.delegated() {
			continue
		}
		d, err := w.delegate(all)
		if err != nil {
			return nil, err
		}
		if d.Primary {
			out = slices.Insert(out, 0, d)
		} else {
			out = append(out, d)
		}
	}
	return out, nil
}

func (w *wanted) delegate(all []wanted) (wire.Delegate, error) {
	out := wire.Delegate{Network: w.network.Name, IfName: w.request.IfName, Primary: w.primary()}
	mac := w.request.MAC
	if w.plan != nil {
		elsewhere := slices.ContainsFunc(all, func(o wanted) bool { return o.request.IfName != w.request.IfName && o.request.DefaultRoute })
		w.conf.SetIPAM(w.ipam(elsewhere))
		if mac == "" && w.conf.Capable(capabilityMAC) {
			mac = w.plan.MAC(w.lease.Address).String()
		}
	}
	out.RuntimeConfig = w.runtimeConfig
	if mac != "" {
		raw, err := json.Marshal(mac)
		if err != nil {
			return out, fmt.Errorf("encoding mac: %w", err)
		}
		out.RuntimeConfig = maps.Clone(w.runtimeConfig)
		if out.RuntimeConfig == nil {
			out.RuntimeConfig = map[string]json.RawMessage{}
		}
		out.RuntimeConfig[capabilityMAC] = raw
	}
	var err error
	out.Config, err = w.conf.Bytes()
	return out, err
}

// ipam hands our address to the plugin. The next hop is the Network's gateway,
// or else the node's own address, which plugins that route (ptp, bridge as
// gateway) take for the host's end.
func (w *wanted) ipam(elsewhere bool) *wire.IPAM {
	out := &wire.IPAM{Type: wire.PluginType}
	gateway, gateway6 := w.plan.Gateway()
	hops := append([]netip.Addr{gateway, gateway6}, w.nodeAddresses()...)
	addresses := w.plan.Interface(w.lease.Address)
	for _, address := range addresses {
		entry := wire.IPAMAddress{Address: address.String()}
		if at := slices.IndexFunc(hops, func(hop netip.Addr) bool { return sameFamily(hop, address.Addr()) }); at >= 0 {
			entry.Gateway = hops[at].String()
		}
		out.Addresses = append(out.Addresses, entry)
		if w.primary() && !elsewhere && entry.Gateway != "" {
			out.Routes = append(out.Routes, &cnitypes.Route{Dst: ipNet(netip.PrefixFrom(zero(address.Addr()), 0))})
		}
	}
	routes := w.networkRoutes(addresses)
	if gateway.IsValid() || gateway6.IsValid() { // CNI has no word for on-link
		routes = append(routes, w.onLink(addresses)...)
	}
	for _, r := range routes {
		route := &cnitypes.Route{Dst: ipNet(r.To)}
		if r.Via.IsValid() {
			route.GW = r.Via.AsSlice()
		}
		out.Routes = append(out.Routes, route)
	}
	if dns := w.network.Spec.DNS; dns != nil {
		out.DNS.Search = dns.Search
		for _, server := range dns.Nameservers {
			out.DNS.Nameservers = append(out.DNS.Nameservers, string(server))
		}
	}
	return out
}

// deliver gives the delegates' results to the interfaces that they are of.
func deliver(all []wanted, results []wire.DelegateResult) error {
	for i := range all {
		w := &all[i]
		if !w.delegated() {
			continue
		}
		at := slices.IndexFunc(results, func(r wire.DelegateResult) bool { return r.IfName == w.request.IfName })
		if at < 0 {
			return fmt.Errorf("the CNI binary has no result of plugin %q for %s", w.network.Spec.Plugin, w.request.IfName)
		}
		result, err := readResult(results[at].Result)
		if err != nil {
			return fmt.Errorf("reading the result of plugin %q for %s: %w", w.network.Spec.Plugin, w.request.IfName, err)
		}
		w.result, w.device = result, results[at].DeviceInfo
		if err := w.hasAddresses(); err != nil {
			return err
		}
		if w.takesDefault() && len(w.nextHops()) == 0 {
			return invalid("network %q has no gateway, which defaultRoute on %s needs", w.network.Name, w.request.IfName)
		}
	}
	return nil
}

// takesDefault: the pod wants its default route over the interface, which the
// plugin by itself makes only on eth0.
func (w *wanted) takesDefault() bool {
	return w.request.DefaultRoute && (!w.primary() || len(w.hops) > 0)
}

// nextHops are the routers of the interface's default routes, one of each
// family: those that the pod named and no others, else the Network's and, of a
// family in which it has none, the plugin's.
func (w *wanted) nextHops() []netip.Addr {
	candidates := w.hops
	if len(candidates) == 0 {
		if w.plan != nil {
			gateway, gateway6 := w.plan.Gateway()
			candidates = append(candidates, gateway, gateway6)
		}
		for _, ip := range w.result.IPs {
			if hop, ok := netip.AddrFromSlice(ip.Gateway); ok {
				candidates = append(candidates, hop.Unmap())
			}
		}
	}
	var out []netip.Addr
	for _, hop := range candidates {
		if hop.IsValid() && !slices.ContainsFunc(out, func(has netip.Addr) bool { return sameFamily(has, hop) }) {
			out = append(out, hop)
		}
	}
	return out
}

// takeDefaults turns the pod's default route to the delegated interface that is
// to have it, after all interfaces stand.
func (s *Server) takeDefaults(ctx context.Context, netns string, all []wanted) error {
	for i := range all {
		w := &all[i]
		if !w.delegated() || !w.takesDefault() {
			continue
		}
		keep := slices.Concat(s.deps.ServiceCIDRs(), s.config.PodCIDRs)
		if err := s.deps.Foreign.TakeDefault(ctx, netns, w.request.IfName, w.nextHops(), keep); err != nil {
			return fmt.Errorf("interface %s: %w", w.request.IfName, err)
		}
	}
	return nil
}

// hasAddresses finds plugins that have not asked for the Network's address, but
// give others: some (flannel) make up the configuration of the plugin that they
// call in their turn.
func (w *wanted) hasAddresses() error {
	if w.plan == nil {
		return nil
	}
	for _, address := range w.plan.Interface(w.lease.Address) {
		has := slices.ContainsFunc(w.result.IPs, func(ip *current.IPConfig) bool {
			got, ok := netip.AddrFromSlice(ip.Address.IP)
			return ok && got.Unmap() == address.Addr()
		})
		if !has {
			return invalid("network %q: plugin %q did not give %s the address %s of the Network: use a Network without subnet, whose addresses are the plugin's",
				w.network.Name, w.network.Spec.Plugin, w.request.IfName, address.Addr())
		}
	}
	return nil
}

// attachment is the entry of network-status for a delegated interface.
func (w *wanted) attachment() podnetworks.Attachment {
	entry := podnetworks.Attachment{Name: w.network.Name, Interface: w.request.IfName, Default: w.primary(), DeviceInfo: w.device, MAC: w.found.MAC, MTU: w.found.MTU}
	at := slices.IndexFunc(w.result.Interfaces, func(i *current.Interface) bool { return i.Sandbox != "" && i.Name == w.request.IfName })
	if at >= 0 {
		entry.MAC, entry.MTU = w.result.Interfaces[at].Mac, w.result.Interfaces[at].Mtu
	}
	for _, ip := range w.result.IPs {
		if ip.Interface == nil || *ip.Interface == at {
			entry.IPs = append(entry.IPs, ip.Address.IP.String())
		}
	}
	entry.Gateway = defaultGateways(w.result)
	if w.takesDefault() {
		entry.Gateway = nil
		for _, hop := range w.nextHops() {
			entry.Gateway = append(entry.Gateway, hop.String())
		}
	}
	if dns := w.result.DNS; !dns.IsEmpty() {
		entry.DNS = &podnetworks.AttachmentDNS{Nameservers: dns.Nameservers, Domain: dns.Domain, Search: dns.Search}
	}
	return entry
}

// defaultGateways are the next hops of a result's default routes; a route that
// names none goes to the gateway of the addresses (CNI specification, Routes).
func defaultGateways(result *current.Result) []string {
	var out []string
	for _, route := range result.Routes {
		if ones, _ := route.Dst.Mask.Size(); ones != 0 || !route.Dst.IP.IsUnspecified() {
			continue
		}
		hop := route.GW
		for _, ip := range result.IPs {
			if hop == nil && (ip.Address.IP.To4() != nil) == (route.Dst.IP.To4() != nil) {
				hop = ip.Gateway
			}
		}
		if hop != nil && !slices.Contains(out, hop.String()) {
			out = append(out, hop.String())
		}
	}
	return out
}

// allAttachments are those of all interfaces in the pod's order; interfaces are
// the built-in ones.
func allAttachments(all []wanted, interfaces []link.Interface) []podnetworks.Attachment {
	own := attachments(builtIn(all), interfaces)
	out := make([]podnetworks.Attachment, 0, len(all))
	for i := range all {
		if all[i].delegated() {
			out = append(out, all[i].attachment())
			continue
		}
		out = append(out, own[0])
		own = own[1:]
	}
	return out
}

// delegatedNames are the names of the interfaces that delegates make.
func delegatedNames(all []wanted) []string {
	var out []string
	for i := range all {
		if all[i].delegated() {
			out = append(out, all[i].request.IfName)
		}
	}
	return out
}

// tidy puts default routes behind that delegates beside eth0 brought along: what
// a pod did not ask for must not turn its traffic. What results do not tell, as
// those of older versions have no MTU, it reads from the interfaces.
func (s *Server) tidy(ctx context.Context, netns string, all []wanted) error {
	for i := range all {
		w := &all[i]
		if !w.delegated() {
			continue
		}
		at := slices.IndexFunc(w.result.Interfaces, func(i *current.Interface) bool { return i.Sandbox != "" && i.Name == w.request.IfName })
		found, err := s.deps.Foreign.Adopt(ctx, netns, w.request.IfName, !w.primary())
		switch {
		case err == nil && at < 0:
			w.found = found
		case err == nil:
			told := w.result.Interfaces[at]
			told.Mac, told.Mtu = cmp.Or(told.Mac, found.MAC), cmp.Or(told.Mtu, found.MTU)
		case at < 0 && link.IsGone(err) && !errors.Is(err, link.ErrNamespaceGone):
			// A plugin of a device that is none of the network's says so.
		default:
			return fmt.Errorf("interface %s: %w", w.request.IfName, err)
		}
	}
	return nil
}

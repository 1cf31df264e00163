// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/netplane/netplane/cni/link"
)

// addPath makes the host reach a sandbox's eth0, if that is on a Network, and the
// Network's subnets with the first of them. The sandbox is remembered already, so
// that no other removes what it needs.
func (s *Server) addPath(ctx context.Context, sandbox *Sandbox) error {
	if sandbox.Path == nil {
		return nil
	}
	s.paths.Lock()
	defer s.paths.Unlock()
	path, key := sandbox.Path.Path, sandbox.Path.key()
	_, reached := s.reached[key]
	if !reached {
		path.Reach = sandbox.Path.reach()
	}
	if err := s.deps.HostLinks.AddPath(ctx, path); err != nil {
		return fmt.Errorf("making the node's path to network %q: %w", sandbox.Path.Network, err)
	}
	if !reached {
		s.reached[key] = path.Reach
	}
	return nil
}

// key tells the ways of Networks on devices of the host apart.
func (p *NodePath) key() string { return p.Network + " " + p.Device }

// reach are the routes to the Network's subnets, from this sandbox's addresses of
// the node.
func (p *NodePath) reach() []link.SubnetRoute {
	var out []link.SubnetRoute
	for _, subnet := range p.Subnets {
		for _, own := range p.Addresses {
			if sameFamily(own.Addr(), subnet.Addr()) {
				out = append(out, link.SubnetRoute{To: subnet, Source: own.Addr()})
				break
			}
		}
	}
	return out
}

// walkers are the sandboxes whose eth0 the host is to reach: not those whose path
// was removed, though their DEL is not done.
func (s *Server) walkers() []*Sandbox {
	all := s.snapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(all, func(sandbox *Sandbox) bool { return sandbox.Path == nil || s.leaving[sandbox.ContainerID] })
}

// removePath takes back what no other sandbox needs. May be repeated.
func (s *Server) removePath(ctx context.Context, sandbox *Sandbox) error {
	if sandbox.Path == nil {
		return nil
	}
	s.paths.Lock()
	defer s.paths.Unlock()
	s.mu.Lock()
	s.leaving[sandbox.ContainerID] = true
	s.mu.Unlock()
	others := slices.DeleteFunc(s.walkers(), func(other *Sandbox) bool {
		return other.ContainerID == sandbox.ContainerID || other.Path.Device != sandbox.Path.Device
	})
	gone := unused(sandbox.Path, others)
	if err := s.handReach(ctx, sandbox.Path, gone.Addresses, others); err != nil {
		return fmt.Errorf("keeping the node's path to network %q: %w", sandbox.Path.Network, err)
	}
	if err := s.deps.HostLinks.RemovePath(ctx, gone, len(others) == 0); err != nil {
		return fmt.Errorf("removing the node's path to network %q: %w", sandbox.Path.Network, err)
	}
	return nil
}

// unused is what of a path no other sandbox on its device needs.
func unused(path *NodePath, others []*Sandbox) link.Path {
	gone := path.Path
	gone.Addresses, gone.Routes, gone.Reach = slices.Clone(gone.Addresses), slices.Clone(gone.Routes), path.reach()
	for _, other := range others {
		for _, used := range other.Path.Addresses {
			gone.Addresses = slices.DeleteFunc(gone.Addresses, func(a netip.Prefix) bool { return a == used })
		}
		// The address may have a new owner already, if garbage collection
		// freed it before the runtime's DEL came.
		for _, used := range other.Path.Routes {
			gone.Routes = slices.DeleteFunc(gone.Routes, func(r link.HostRoute) bool { return r.To == used.To })
		}
		for _, used := range other.Path.Subnets {
			gone.Reach = slices.DeleteFunc(gone.Reach, func(r link.SubnetRoute) bool { return r.To == used })
		}
	}
	return gone
}

// handReach gives the routes to a Network's subnets another of the node's
// addresses, before theirs goes and takes them along; without another pod on the
// Network it forgets them.
func (s *Server) handReach(ctx context.Context, path *NodePath, gone []netip.Prefix, others []*Sandbox) error {
	loses := slices.ContainsFunc(s.reached[path.key()], func(r link.SubnetRoute) bool {
		return slices.Contains(gone, netip.PrefixFrom(r.Source, r.Source.BitLen()))
	})
	at := slices.IndexFunc(others, func(other *Sandbox) bool { return other.Path.Network == path.Network })
	if at < 0 {
		delete(s.reached, path.key())
		return nil
	}
	if !loses {
		return nil
	}
	heir := others[at].Path.Path
	heir.Routes, heir.Reach = nil, others[at].Path.reach()
	if err := s.deps.HostLinks.AddPath(ctx, heir); err != nil {
		return err
	}
	s.reached[path.key()] = heir.Reach
	return nil
}

// repath makes all paths again: devices, addresses and routes may have been
// taken away from below, with the NIC for instance.
func (s *Server) repath(ctx context.Context) error {
	s.paths.Lock()
	defer s.paths.Unlock()
	byDevice := map[string]*link.Path{}
	var devices []string
	for _, sandbox := range s.walkers() {
		if sandbox.State != StateAttached { // its ADD makes it
			continue
		}
		path := byDevice[sandbox.Path.Device]
		if path == nil {
			path = &link.Path{Device: sandbox.Path.Device, Parent: sandbox.Path.Parent, MTU: sandbox.Path.MTU}
			byDevice[path.Device], devices = path, append(devices, path.Device)
		}
		for _, own := range sandbox.Path.Addresses {
			if !slices.Contains(path.Addresses, own) {
				path.Addresses = append(path.Addresses, own)
			}
		}
		path.Routes = append(path.Routes, sandbox.Path.Routes...)
		key := sandbox.Path.key()
		if _, known := s.reached[key]; !known {
			s.reached[key] = sandbox.Path.reach()
		}
		for _, r := range s.reached[key] {
			if !slices.Contains(path.Reach, r) {
				path.Reach = append(path.Reach, r)
			}
		}
	}
	var failed []error
	for _, device := range devices {
		if err := s.deps.HostLinks.AddPath(ctx, *byDevice[device]); err != nil {
			failed = append(failed, fmt.Errorf("making the node's path over %s again: %w", device, err))
		}
	}
	return errors.Join(failed...)
}

// mask makes the masquerade rules those of the Networks that are on the eth0
// of some sandbox here.
func (s *Server) mask(ctx context.Context) error {
	s.paths.Lock()
	defer s.paths.Unlock()
	rules, text := masquerades(s.walkers())
	if text == s.masking {
		return nil
	}
	if err := s.deps.HostLinks.SetMasquerade(ctx, rules); err != nil {
		return err
	}
	s.masking = text
	return nil
}

// masquerades are the rules that sandboxes need, and what tells them from others.
func masquerades(sandboxes []*Sandbox) (rules []link.Masquerade, text string) {
	byKey := map[string]*link.Masquerade{}
	for _, sandbox := range sandboxes {
		path := sandbox.Path
		rule := byKey[path.key()]
		if rule == nil {
			rule = &link.Masquerade{}
			byKey[path.key()] = rule
		}
		rule.Device, rule.Subnets = path.Device, path.Subnets
		for _, own := range path.Addresses {
			at := slices.IndexFunc(rule.Sources, func(a netip.Addr) bool { return sameFamily(a, own.Addr()) })
			if at < 0 {
				rule.Sources = append(rule.Sources, own.Addr())
			} else if own.Addr().Less(rule.Sources[at]) {
				rule.Sources[at] = own.Addr()
			}
		}
		for _, local := range path.Local {
			if !slices.Contains(rule.Local, local) {
				rule.Local = append(rule.Local, local)
			}
		}
	}
	var out strings.Builder
	out.WriteString("rules:")
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		rule := byKey[key]
		slices.SortFunc(rule.Sources, netip.Addr.Compare)
		slices.SortFunc(rule.Local, netip.Prefix.Compare)
		rules = append(rules, *rule)
		fmt.Fprintf(&out, " %s %v %v %v", key, rule.Subnets, rule.Sources, rule.Local)
	}
	return rules, out.String()
}

// remask writes the rules again: a firewall that reloads may have flushed them.
func (s *Server) remask(ctx context.Context) error {
	if len(s.walkers()) == 0 {
		return nil
	}
	s.paths.Lock()
	s.masking = ""
	s.paths.Unlock()
	return s.mask(ctx)
}

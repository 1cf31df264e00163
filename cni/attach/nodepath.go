// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/netplane/netplane/cni/link"
)

// addPath makes the host reach a sandbox's eth0, if that is on a Network. The
// sandbox is remembered already, so that no other removes what it needs.
func (s *Server) addPath(ctx context.Context, sandbox *Sandbox) error {
	if sandbox.Path == nil {
		return nil
	}
	s.paths.Lock()
	defer s.paths.Unlock()
	if err := s.deps.HostLinks.AddPath(ctx, sandbox.Path.Path); err != nil {
		return fmt.Errorf("making the node's path to network %q: %w", sandbox.Path.Network, err)
	}
	return nil
}

// removePath takes back what no other sandbox needs. May be repeated.
func (s *Server) removePath(ctx context.Context, sandbox *Sandbox) error {
	if sandbox.Path == nil {
		return nil
	}
	s.paths.Lock()
	defer s.paths.Unlock()
	gone, last := sandbox.Path.Path, true
	gone.Addresses, gone.Routes = slices.Clone(gone.Addresses), slices.Clone(gone.Routes)
	for _, other := range s.snapshot() {
		if other.ContainerID == sandbox.ContainerID || other.Path == nil || other.Path.Device != gone.Device {
			continue
		}
		last = false
		for _, used := range other.Path.Addresses {
			gone.Addresses = slices.DeleteFunc(gone.Addresses, func(a netip.Prefix) bool { return a == used })
		}
		// The address may have a new owner already, if garbage collection
		// freed it before the runtime's DEL came.
		for _, used := range other.Path.Routes {
			gone.Routes = slices.DeleteFunc(gone.Routes, func(r link.HostRoute) bool { return r.To == used.To })
		}
	}
	if err := s.deps.HostLinks.RemovePath(ctx, gone, last); err != nil {
		return fmt.Errorf("removing the node's path to network %q: %w", sandbox.Path.Network, err)
	}
	return nil
}

// mask makes the masquerade rules those of the Networks that are on the eth0
// of some sandbox here.
func (s *Server) mask(ctx context.Context) error {
	s.paths.Lock()
	defer s.paths.Unlock()
	byDevice := map[string]link.Masquerade{}
	var names []string
	for _, sandbox := range s.snapshot() {
		if sandbox.Path == nil {
			continue
		}
		key := sandbox.Path.Network + " " + sandbox.Path.Device
		if _, ok := byDevice[key]; !ok {
			names = append(names, key)
		}
		byDevice[key] = link.Masquerade{Device: sandbox.Path.Device, Subnets: sandbox.Path.Subnets}
	}
	slices.Sort(names)
	var rules []link.Masquerade
	var text strings.Builder
	text.WriteString("rules:")
	for _, name := range names {
		rules = append(rules, byDevice[name])
		fmt.Fprintf(&text, " %s %v", name, byDevice[name].Subnets)
	}
	if text.String() == s.masking {
		return nil
	}
	if err := s.deps.HostLinks.SetMasquerade(ctx, rules); err != nil {
		return err
	}
	s.masking = text.String()
	return nil
}

// remask writes the rules again: a firewall that reloads may have flushed them.
func (s *Server) remask(ctx context.Context) error {
	used := slices.ContainsFunc(s.snapshot(), func(sandbox *Sandbox) bool { return sandbox.Path != nil })
	if !used {
		return nil
	}
	s.paths.Lock()
	s.masking = ""
	s.paths.Unlock()
	return s.mask(ctx)
}

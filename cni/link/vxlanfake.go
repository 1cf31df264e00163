// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// EnsureOverlay makes the links of a segment. The operation is told to FailOn
// as "overlay npb...".
func (f *Fake) EnsureOverlay(_ context.Context, o Overlay) (made bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("overlay %s", o.Bridge); err != nil {
		return false, err
	}
	device := overlayDeviceName(o.Bridge)
	line := fmt.Sprintf("host: %s vxlan id %d dstport %d local %s dev %s mtu %d master %s", device, o.VNI, o.Port, o.Tunnel.Address, o.Tunnel.Device, o.MTU, o.Bridge)
	made = f.lines["host/"+device] != line
	if made {
		f.dropForwards(device, func(string) bool { return true })
	}
	f.lines["host/"+o.Bridge] = fmt.Sprintf("host: %s bridge mtu %d", o.Bridge, o.MTU)
	f.lines["host/"+device] = line
	return made, nil
}

func (f *Fake) dropForwards(device string, which func(key string) bool) {
	maps.DeleteFunc(f.lines, func(key, _ string) bool { return strings.HasPrefix(key, "fdb/"+device+"/") && which(key) })
}

// Overlays lists the bridges of segments.
func (f *Fake) Overlays() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for key := range f.lines {
		bridge, ok := overlayOf(strings.TrimPrefix(key, "host/"))
		if ok && !slices.Contains(out, bridge) {
			out = append(out, bridge)
		}
	}
	return out, nil
}

// RemoveOverlay removes a segment's links and table.
func (f *Fake) RemoveOverlay(_ context.Context, bridge string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("no overlay %s", bridge); err != nil {
		return err
	}
	device := overlayDeviceName(bridge)
	delete(f.lines, "host/"+bridge)
	delete(f.lines, "host/"+device)
	f.dropForwards(device, func(string) bool { return true })
	return nil
}

// Forwards reads the table back from its lines.
func (f *Fake) Forwards(bridge string) ([]Forward, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Forward
	for key, forward := range f.forwards {
		if strings.HasPrefix(key, "fdb/"+overlayDeviceName(bridge)+"/") && f.lines[key] != "" {
			out = append(out, forward)
		}
	}
	return out, nil
}

// ChangeForwards adds and removes entries. The operation is told to FailOn as
// "forward npb...".
func (f *Fake) ChangeForwards(_ context.Context, bridge, underlay string, add, remove []Forward) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fails("forward %s", bridge); err != nil {
		return err
	}
	device := overlayDeviceName(bridge)
	if f.forwards == nil {
		f.forwards = map[string]Forward{}
	}
	key := func(e *Forward) string {
		if e.MAC == [6]byte{} {
			return fmt.Sprintf("fdb/%s/all/%s", device, e.VTEP)
		}
		return fmt.Sprintf("fdb/%s/%x", device, e.MAC)
	}
	for i := range add {
		f.forwards[key(&add[i])] = add[i]
		f.lines[key(&add[i])] = fmt.Sprintf("fdb: %s %x dst %s via %s", device, add[i].MAC, add[i].VTEP, underlay)
	}
	for i := range remove {
		if f.forwards[key(&remove[i])] == remove[i] {
			delete(f.lines, key(&remove[i]))
		}
	}
	return nil
}

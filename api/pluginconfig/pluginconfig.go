// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pluginconfig reads Network.spec.pluginConfig of the built-in plugins:
// which keys each of them knows, which values, and what follows for the pods
// that ask for the Network. It is pure, so that controller, scheduler and agent
// come to the same answer.
package pluginconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// Keys of pluginConfig.
const (
	keyMode       = "mode"
	keyIsolated   = "isolated"
	keySpoofCheck = "spoofCheck"
)

// Modes that change what a pod may ask for.
const (
	ModePassthru = "passthru"
	ModePrivate  = "private"
	ModeL3       = "l3"
)

// Options are the settings of a built-in plugin; the zero value is what a
// Network without pluginConfig has.
type Options struct {
	// Mode of macvlan (bridge, vepa, private, passthru) or ipvlan (l2, l3);
	// empty is the first of them.
	Mode string
	// Isolated keeps a bridge's pods on one node from each other.
	Isolated bool
	// SpoofCheck drops what a bridge's pods send from addresses not theirs.
	SpoofCheck bool
}

// modesOf lists the values of mode, the default first.
func modesOf(plugin string) []string {
	switch plugin {
	case v1alpha1.PluginMacvlan:
		return []string{"bridge", "vepa", ModePrivate, ModePassthru}
	case v1alpha1.PluginIPVLAN:
		return []string{"l2", ModeL3}
	}
	return nil
}

// keysOf lists what a plugin knows; nil if it is not for Parse to say.
func keysOf(plugin string) []string {
	switch plugin {
	case v1alpha1.PluginMacvlan, v1alpha1.PluginIPVLAN:
		return []string{keyMode}
	case v1alpha1.PluginBridge:
		return []string{keyIsolated, keySpoofCheck}
	case v1alpha1.PluginHostDevice:
		return []string{}
	}
	return nil
}

// Checked says whether Parse knows the keys of a plugin. Those of all others are
// for the plugin itself to read.
func Checked(plugin string) bool { return keysOf(plugin) != nil }

// Parse reads the options of a plugin that is Checked. An error names the field
// and what may stand there.
func Parse(plugin string, raw *apiextensionsv1.JSON) (Options, error) {
	var out Options
	if raw == nil || len(raw.Raw) == 0 || string(raw.Raw) == "null" {
		return out, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw.Raw, &fields); err != nil {
		return out, fmt.Errorf("pluginConfig must be an object with the keys of plugin %s: %s", plugin, strings.Join(keysOf(plugin), ", "))
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if len(keysOf(plugin)) == 0 {
			return out, fmt.Errorf("pluginConfig.%s: plugin %s has no options: remove it", key, plugin)
		}
		if !slices.Contains(keysOf(plugin), key) {
			return out, fmt.Errorf("pluginConfig.%s: plugin %s has no such key: remove it, or write one of %s", key, plugin, strings.Join(keysOf(plugin), ", "))
		}
		if err := out.set(plugin, key, fields[key]); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (o *Options) set(plugin, key string, value json.RawMessage) error {
	if key == keyMode {
		err := json.Unmarshal(value, &o.Mode)
		if err != nil || !slices.Contains(modesOf(plugin), o.Mode) {
			return fmt.Errorf("pluginConfig.mode: %s is no mode of plugin %s: write one of %s", value, plugin, strings.Join(modesOf(plugin), ", "))
		}
		return nil
	}
	target := &o.Isolated
	if key == keySpoofCheck {
		target = &o.SpoofCheck
	}
	if err := json.Unmarshal(value, target); err != nil || string(value) == "null" {
		return fmt.Errorf("pluginConfig.%s: %s is neither true nor false", key, value)
	}
	return nil
}

// Of reads the options of a Network; those of a plugin that is not Checked are
// the zero value.
func Of(spec *v1alpha1.NetworkSpec) (Options, error) {
	if !Checked(spec.Plugin) {
		return Options{}, nil
	}
	return Parse(spec.Plugin, spec.PluginConfig)
}

// SharesMAC says that interfaces of the plugin have the NIC's MAC address
// rather than one of their own.
func SharesMAC(plugin string, options Options) bool {
	return plugin == v1alpha1.PluginIPVLAN || plugin == v1alpha1.PluginMacvlan && options.Mode == ModePassthru
}

// Refuses says why a pod cannot have what it asks of a Network with any node's
// help; it is empty if it can.
func Refuses(spec *v1alpha1.NetworkSpec, request *podnetworks.Request) string {
	if refusal := refusesTuned(spec, request); refusal != "" {
		return refusal
	}
	options, err := Of(spec)
	if err == nil && options.Mode == ModePrivate && request.IfName == podnetworks.PrimaryInterface {
		return fmt.Sprintf("network %q: interfaces of plugin macvlan in mode private cannot be eth0, as the node itself would not reach the pod: choose another interface name, or a Network of another mode", request.Name)
	}
	if err != nil || !SharesMAC(spec.Plugin, options) {
		return ""
	}
	what := "plugin " + spec.Plugin
	if options.Mode == ModePassthru {
		what += " in mode passthru"
	}
	switch {
	case request.MAC != "":
		return fmt.Sprintf("network %q: interfaces of %s have the NIC's MAC address: ask for none", request.Name, what)
	case request.IfName == podnetworks.PrimaryInterface:
		return fmt.Sprintf("network %q: interfaces of %s cannot be eth0, as the node itself would not reach the pod: choose another interface name, or a Network of plugin macvlan or bridge", request.Name, what)
	}
	return ""
}

// minMTU6 is the least MTU of a link with IPv6 (RFC 8200, section 5).
const minMTU6 = 1280

// refusesTuned is Refuses for the interface's own settings.
func refusesTuned(spec *v1alpha1.NetworkSpec, request *podnetworks.Request) string {
	switch {
	case !request.Tuned():
		return ""
	case spec.Delegated():
		return fmt.Sprintf("network %q: plugin %s is not built in, and is told of no mtu or sysctls of pods: write them into the Network's pluginConfig", request.Name, spec.Plugin)
	case spec.MTU > 0 && request.MTU > int(spec.MTU):
		return fmt.Sprintf("network %q: mtu %d is larger than the network's %d", request.Name, request.MTU, spec.MTU)
	case request.MTU > 0 && request.MTU < minMTU6 && (spec.Subnet6 != "" || strings.Contains(string(spec.Subnet), ":")):
		return fmt.Sprintf("network %q: mtu %d is too small for IPv6, which the network has: write %d or more", request.Name, request.MTU, minMTU6)
	}
	for _, name := range slices.Sorted(maps.Keys(request.Sysctls)) {
		if !slices.Contains(spec.AllowedSysctls, v1alpha1.SysctlName(name)) {
			return fmt.Sprintf("network %q: sysctl %s is not in the network's allowedSysctls", request.Name, name)
		}
	}
	return ""
}

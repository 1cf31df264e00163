// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package delegate

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/netplane/netplane/cni/wire"
)

// Members of a CNI configuration (SPEC.md, section 1).
const (
	keyName         = "name"
	keyType         = "type"
	keyVersion      = "cniVersion"
	keyPlugins      = "plugins"
	keyIPAM         = "ipam"
	keyMTU          = "mtu"
	keyCapabilities = "capabilities"
	keyInlinedOnly  = "loadOnlyInlinedPlugins"
)

// defaultVersion is that of a pluginConfig without cniVersion: the newest that
// plugins of 2021 and later all speak.
const defaultVersion = "1.0.0"

// Conf is a CNI configuration list with all its plugins in it. It may be
// changed; every Conf is its owner's own.
type Conf struct {
	list    map[string]any // without the plugins
	plugins []map[string]any
}

// Parse reads a configuration list, or the older form of one plugin alone,
// which becomes a list of one. What has no name is given that one.
func Parse(raw []byte, name string) (*Conf, error) {
	var all map[string]any
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("reading CNI configuration: %w", err)
	}
	return fromMap(all, name)
}

func fromMap(all map[string]any, name string) (*Conf, error) {
	c := &Conf{list: map[string]any{keyName: name, keyVersion: defaultVersion}}
	if _, single := all[keyType]; single {
		plugin := map[string]any{}
		for key, value := range all {
			switch key {
			case keyName, keyVersion:
				c.list[key] = value
			default:
				plugin[key] = value
			}
		}
		c.plugins = []map[string]any{plugin}
		return c, c.check()
	}
	plugins, ok := all[keyPlugins].([]any)
	if !ok || len(plugins) == 0 {
		return nil, errors.New("a CNI configuration has a type, or a list of plugins")
	}
	for key, value := range all {
		if key != keyPlugins && key != keyInlinedOnly {
			c.list[key] = value
		}
	}
	for _, item := range plugins {
		plugin, ok := item.(map[string]any)
		if !ok {
			return nil, errors.New("a CNI configuration's plugins are objects with a type")
		}
		c.plugins = append(c.plugins, plugin)
	}
	return c, c.check()
}

// check holds the configuration to what libcni takes.
func (c *Conf) check() error {
	raw, err := c.Bytes()
	if err != nil {
		return err
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return err
	}
	if list.Name == "" {
		return errors.New("a CNI configuration has a name")
	}
	return nil
}

// Bytes is the list as libcni reads it.
func (c *Conf) Bytes() (json.RawMessage, error) {
	all := make(map[string]any, len(c.list)+1)
	for key, value := range c.list {
		all[key] = value
	}
	all[keyPlugins] = c.plugins
	raw, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encoding CNI configuration: %w", err)
	}
	return raw, nil
}

// Name is the CNI network's, under which plugins keep what they gave out.
func (c *Conf) Name() string { return text(c.list[keyName]) }

// Kind is the type of the plugin that makes the interface: the first.
func (c *Conf) Kind() string { return text(c.plugins[0][keyType]) }

// Types are the types of all plugins and of their IPAM plugins, each once: all
// that is executed.
func (c *Conf) Types() []string {
	var out []string
	for _, plugin := range c.plugins {
		out = append(out, text(plugin[keyType]))
		if ipam, ok := plugin[keyIPAM].(map[string]any); ok {
			if kind := text(ipam[keyType]); kind != "" {
				out = append(out, kind)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Capable tells whether a plugin of the list declares a capability. What none
// declares would be dropped without a word.
func (c *Conf) Capable(capability string) bool {
	return slices.ContainsFunc(c.plugins, func(plugin map[string]any) bool {
		declared, _ := plugin[keyCapabilities].(map[string]any)
		return declared[capability] == true
	})
}

// SetIPAM has the plugin that has an IPAM plugin, or else the first, take its
// addresses from the CNI binary, which gives what is written here.
func (c *Conf) SetIPAM(ipam *wire.IPAM) {
	at := max(0, slices.IndexFunc(c.plugins, func(plugin map[string]any) bool { return plugin[keyIPAM] != nil }))
	c.plugins[at][keyIPAM] = ipam
}

// setMTU is for the plugin that makes the interface, unless its configuration
// says otherwise.
func (c *Conf) setMTU(mtu int32) {
	if _, has := c.plugins[0][keyMTU]; mtu > 0 && !has {
		c.plugins[0][keyMTU] = mtu
	}
}

// index finds the plugin of a type, or -1.
func (c *Conf) index(kind string) int {
	return slices.IndexFunc(c.plugins, func(plugin map[string]any) bool { return strings.EqualFold(text(plugin[keyType]), kind) })
}

func text(value any) string {
	out, _ := value.(string)
	return out
}

// mergePatch applies an RFC 7386 patch: objects merge member by member, null
// removes, and all else replaces.
func mergePatch(target, patch map[string]any) map[string]any {
	if target == nil {
		target = map[string]any{}
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(target, key)
		case map[string]any:
			inner, _ := target[key].(map[string]any)
			target[key] = mergePatch(inner, value)
		default:
			target[key] = value
		}
	}
	return target
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package delegate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/netplane/netplane/cni/wire"
)

// keyArgs holds what a pod hands to a plugin (CNI CONVENTIONS.md, "args").
const keyArgs = "args"

// Restrict says which plugin of a configuration that a tenant wrote is not
// among those allowed. Plugins run others that stand anywhere in their own
// configuration (ipam, flannel's delegate), and Go programs read the names of
// members in upper or lower case: so each member called type, however deep and
// however written, counts as a plugin's.
func (c *Conf) Restrict(allowed []string) error {
	if c.Name() == wire.PluginType {
		return fmt.Errorf("the name %q is netplane's own", wire.PluginType)
	}
	for _, plugin := range c.plugins {
		if err := restrict(plugin, allowed); err != nil {
			return err
		}
	}
	return restrict(c.list, allowed)
}

func restrict(value any, allowed []string) error {
	switch value := value.(type) {
	case map[string]any:
		for key, member := range value {
			if strings.EqualFold(key, keyType) && !slices.Contains(allowed, text(member)) {
				return fmt.Errorf("plugin type %q is not among those that netplane's agents allow NetworkAttachmentDefinitions (--nad-plugin-types=%s)", member, strings.Join(allowed, ","))
			}
			if err := restrict(member, allowed); err != nil {
				return err
			}
		}
	case []any:
		for _, item := range value {
			if err := restrict(item, allowed); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetArgs hands a pod's cni-args to all plugins (NPWG v1.3, 4.1.2.1.6).
func (c *Conf) SetArgs(args map[string]any) {
	if len(args) == 0 {
		return
	}
	for _, plugin := range c.plugins {
		has, _ := plugin[keyArgs].(map[string]any)
		merged := map[string]any{}
		for key, value := range has {
			merged[key] = value
		}
		cni, _ := merged["cni"].(map[string]any)
		inner := map[string]any{}
		for _, from := range []map[string]any{cni, args} {
			for key, value := range from {
				inner[key] = value
			}
		}
		merged["cni"] = inner
		plugin[keyArgs] = merged
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Names of what is installed.
const (
	// PluginType is the binary's name and the type in the configuration.
	PluginType = "netplane"
	// ConfName is to sort before all others, as runtimes take the first.
	ConfName = "00-netplane.conflist"
	// listName is our list's; libcni's cache keeps results by it, so the
	// wrapped list must have another.
	listName = "netplane"
	// confVersion is what runtimes take that do not know cniVersions, which came
	// with 1.1.0; the others take the highest version that they know.
	confVersion = "1.0.0"
	// fullVersion is the first with STATUS and GC.
	fullVersion = "1.1.0"
	// capabilityAnnotations makes the runtime pass a pod's annotations.
	capabilityAnnotations = "io.kubernetes.cri.pod-annotations"
)

// confList is our configuration.
type confList struct {
	CNIVersion  string       `json:"cniVersion"`
	CNIVersions []string     `json:"cniVersions"`
	Name        string       `json:"name"`
	Plugins     []confPlugin `json:"plugins"`
}

type confPlugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	Socket       string          `json:"socket"`
	SpoolDir     string          `json:"spoolDir"`
	Journal      string          `json:"journal"`
	Wrapped      json.RawMessage `json:"wrapped"`
	// UnderMultus: the runtime calls Multus, and Multus calls us.
	UnderMultus bool `json:"underMultus,omitempty"`
}

// rendered is what the node's configurations ask for.
type rendered struct {
	// conf is ours; nil if there is nothing to wrap.
	conf []byte
	// wraps is the file that it is around.
	wraps string
	// bypassedBy is the file that the runtime takes instead of ours, and that does
	// not call ours either; empty if there is none.
	bypassedBy string
}

// render makes our configuration around the one that the runtime would take
// without us: the first by name. If that one cannot be read the runtime could
// not either, so no other is taken in its place.
//
// Never is it one that calls ours, which would go round in a circle, nor one that
// sorts before ours: runtimes take that one itself. If it is Multus's, then it may
// take ours for the cluster's network at its next start.
func (i *Installer) render() (out rendered, err error) {
	files, err := libcni.ConfFiles(i.config.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return out, fmt.Errorf("listing CNI configurations: %w", err)
	}
	slices.Sort(files)
	first, underMultus := true, false
	for _, file := range files {
		name := filepath.Base(file)
		if name == ConfName {
			continue
		}
		list, err := load(file)
		if err != nil {
			return out, fmt.Errorf("reading CNI configuration %s: %w", name, err)
		}
		calls, taken := callsOurs(list), first && name < ConfName
		first = false
		switch {
		case taken && calls:
			underMultus = isMultus(list)
			continue
		case taken:
			out.bypassedBy = name
			continue
		case calls:
			continue
		}
		if out.conf, err = i.around(list, underMultus); err != nil {
			return out, fmt.Errorf("wrapping CNI configuration %s: %w", name, err)
		}
		out.wraps = name
		return out, nil
	}
	return out, nil
}

// load reads a list, with the plugins that stand in files of their own, or
// turns a single plugin's configuration into a list.
func load(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	single, err := libcni.ConfFromFile(file) //nolint:staticcheck // runtimes still read the old form, so it must be wrapped too
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(single) //nolint:staticcheck // see above
}

// callsOurs says that netplane is in a configuration: as a plugin, also of one
// that calls others (Multus's delegates), or by the name of our list or file, which
// is how Multus is told of the cluster's network (clusterNetwork, defaultNetworks).
func callsOurs(list *libcni.NetworkConfigList) bool {
	var whole any
	if json.Unmarshal(list.Bytes, &whole) == nil && mentionsOurs(whole) {
		return true
	}
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { // they may stand in files of their own
		var plugin any
		return p.Network.Type == PluginType || json.Unmarshal(p.Bytes, &plugin) == nil && mentionsOurs(plugin)
	})
}

// maxNesting bounds the search: nobody nests plugins so deep.
const maxNesting = 16

func mentionsOurs(value any) bool { return mentions(value, 0) }

func mentions(value any, depth int) bool {
	if depth > maxNesting {
		return false
	}
	conf, ok := value.(map[string]any)
	if !ok {
		return false
	}
	if conf["type"] == PluginType {
		return true
	}
	for _, key := range []string{"plugins", "delegates", "delegate"} {
		members, several := conf[key].([]any)
		if !several {
			members = []any{conf[key]}
		}
		if slices.ContainsFunc(members, func(m any) bool { return mentions(m, depth+1) }) {
			return true
		}
	}
	names, _ := conf["defaultNetworks"].([]any)
	return slices.ContainsFunc(append(names, conf["clusterNetwork"]), func(name any) bool {
		text, _ := name.(string)
		return text == listName || filepath.Base(text) == ConfName
	})
}

// isMultus: it looks at the pods' annotations of NetworkAttachmentDefinitions.
func isMultus(list *libcni.NetworkConfigList) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool {
		return p.Network.Type == "multus" || p.Network.Type == "multus-shim"
	})
}

func (i *Installer) around(list *libcni.NetworkConfigList, underMultus bool) ([]byte, error) {
	if list.Name == "" || list.Name == listName {
		return nil, fmt.Errorf("its network is named %q: give it another name", list.Name)
	}
	var inlined map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &inlined); err != nil {
		return nil, err
	}
	capabilities := map[string]bool{capabilityAnnotations: true}
	plugins := make([]json.RawMessage, 0, len(list.Plugins))
	for _, plugin := range list.Plugins {
		plugins = append(plugins, plugin.Bytes)
		for capability, supported := range plugin.Network.Capabilities {
			if supported {
				capabilities[capability] = true
			}
		}
	}
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	inlined["plugins"] = raw
	delete(inlined, "loadOnlyInlinedPlugins")
	wrapped, err := json.Marshal(inlined)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(confList{CNIVersion: confVersion, CNIVersions: []string{confVersion, fullVersion}, Name: listName, Plugins: []confPlugin{{
		Type: PluginType, Capabilities: capabilities,
		Socket: i.config.Socket, SpoolDir: i.config.SpoolDir, Journal: i.config.Journal, Wrapped: wrapped, UnderMultus: underMultus,
	}}}, "", "  ")
}

// wrappedBy returns the name of the network that our configuration wraps.
func wrappedBy(conf []byte) string {
	var list confList
	if json.Unmarshal(conf, &list) != nil || len(list.Plugins) != 1 {
		return ""
	}
	var inner types.NetConfList
	if json.Unmarshal(list.Plugins[0].Wrapped, &inner) != nil {
		return ""
	}
	return inner.Name
}

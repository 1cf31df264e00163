// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"errors"
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
	// ConfName sorts before all others, as runtimes take the first.
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

// errNothing says that the node has no configuration that could be wrapped.
var errNothing = errors.New("the node has no CNI configuration of its own yet")

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
}

// render makes our configuration around the one that the runtime would take
// without us: the first by name. If that one cannot be read the runtime could
// not either, so no other is taken in its place.
func (i *Installer) render() (conf []byte, wrapped string, err error) {
	files, err := libcni.ConfFiles(i.config.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, "", fmt.Errorf("listing CNI configurations: %w", err)
	}
	slices.Sort(files)
	for _, file := range files {
		if filepath.Base(file) == ConfName {
			continue
		}
		list, err := load(file)
		if err != nil {
			return nil, "", fmt.Errorf("reading CNI configuration %s: %w", filepath.Base(file), err)
		}
		if isOurs(list) {
			continue
		}
		conf, err := i.around(list)
		if err != nil {
			return nil, "", fmt.Errorf("wrapping CNI configuration %s: %w", filepath.Base(file), err)
		}
		return conf, filepath.Base(file), nil
	}
	return nil, "", errNothing
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

func isOurs(list *libcni.NetworkConfigList) bool {
	return slices.ContainsFunc(list.Plugins, func(p *libcni.PluginConfig) bool { return p.Network.Type == PluginType })
}

func (i *Installer) around(list *libcni.NetworkConfigList) ([]byte, error) {
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
		Socket: i.config.Socket, SpoolDir: i.config.SpoolDir, Journal: i.config.Journal, Wrapped: wrapped,
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

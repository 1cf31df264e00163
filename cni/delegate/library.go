// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package delegate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// Library is what the node has installed: CNI configurations and plugins. It
// reads the folders anew each time: they are small, and others write them.
type Library struct {
	// ConfDir and BinDir are the node's CNI folders, as the agent sees them.
	ConfDir, BinDir string
	// DefinitionDir has further configurations, for NetworkAttachmentDefinitions
	// only; it need not exist.
	DefinitionDir string
}

// Configuration is the configuration for a Network whose plugin is not built
// in, with its own IPAM plugin if it has one. The error says what the node
// lacks, or what is wrong with pluginConfig.
func (l *Library) Configuration(network *v1alpha1.Network) (*Conf, error) {
	conf, err := l.find(network)
	if err != nil {
		return nil, err
	}
	conf.setMTU(network.Spec.MTU)
	return conf, l.Installed(conf)
}

// Check is Configuration for those who want to know only whether there is one.
func (l *Library) Check(network *v1alpha1.Network) error {
	_, err := l.Configuration(network)
	return err
}

// find merges pluginConfig into what is installed. A pluginConfig that names
// plugins of its own is complete: what the node happens to have does not
// change it, so that it is the same on every node.
func (l *Library) find(network *v1alpha1.Network) (*Conf, error) {
	var patch map[string]any
	if config := network.Spec.PluginConfig; config != nil && len(config.Raw) > 0 {
		if err := json.Unmarshal(config.Raw, &patch); err != nil {
			return nil, fmt.Errorf("spec.pluginConfig: %w", err)
		}
	}
	if patch[keyType] != nil || patch[keyPlugins] != nil {
		conf, err := fromMap(patch, network.Name)
		if err != nil {
			return nil, fmt.Errorf("spec.pluginConfig: %w", err)
		}
		return conf, nil
	}
	conf, err := l.Named(network.Spec.Plugin)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the node has no CNI configuration of a network or plugin %q: install it, or write a complete spec.pluginConfig, with a type", network.Spec.Plugin)
	}
	if err != nil {
		return nil, err
	}
	at := max(0, conf.index(network.Spec.Plugin))
	conf.plugins[at] = mergePatch(conf.plugins[at], patch)
	if err := conf.check(); err != nil {
		return nil, fmt.Errorf("spec.pluginConfig: %w", err)
	}
	return conf, nil
}

// Network is the configuration of the network of that very name, of those for
// NetworkAttachmentDefinitions or else of the node's; the error is fs.ErrNotExist
// if there is none.
func (l *Library) Network(name string) (*Conf, error) {
	for _, dir := range []string{l.DefinitionDir, l.ConfDir} {
		confs, err := configurations(dir)
		if err != nil {
			return nil, err
		}
		for _, c := range confs {
			if c.Name() == name {
				return c, nil
			}
		}
	}
	return nil, fmt.Errorf("CNI network %q: %w", name, fs.ErrNotExist)
}

// Named is the installed configuration of the network of that name or, without
// one, the first that has a plugin of that type; upper and lower case are
// alike. The error is fs.ErrNotExist if there is none.
func (l *Library) Named(name string) (*Conf, error) {
	confs, err := configurations(l.ConfDir)
	if err != nil {
		return nil, err
	}
	for _, c := range confs {
		if strings.EqualFold(c.Name(), name) {
			return c, nil
		}
	}
	for _, c := range confs {
		if c.index(name) >= 0 {
			return c, nil
		}
	}
	return nil, fmt.Errorf("CNI network or plugin %q: %w", name, fs.ErrNotExist)
}

// configurations are those of a folder in the order of their files, without
// netplane's own. A file that is none is passed over, as runtimes do it: it
// must not take away the others.
func configurations(dir string) ([]*Conf, error) {
	if dir == "" {
		return nil, nil
	}
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("listing CNI configurations: %w", err)
	}
	slices.Sort(files)
	var out []*Conf
	for _, file := range files {
		conf, err := read(file)
		if err != nil || conf.index(wire.PluginType) >= 0 {
			continue
		}
		out = append(out, conf)
	}
	return out, nil
}

// read takes in the plugins that stand in files of their own.
func read(file string) (*Conf, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(file) != ".conflist" {
		return Parse(raw, "")
	}
	list, err := libcni.NetworkConfFromFile(file)
	if err != nil {
		return nil, err
	}
	var all map[string]any
	if err := json.Unmarshal(list.Bytes, &all); err != nil {
		return nil, err
	}
	plugins := make([]any, 0, len(list.Plugins))
	for _, plugin := range list.Plugins {
		var one map[string]any
		if err := json.Unmarshal(plugin.Bytes, &one); err != nil {
			return nil, err
		}
		plugins = append(plugins, one)
	}
	all[keyPlugins] = plugins
	return fromMap(all, list.Name)
}

// Installed says which plugins of a configuration the node lacks.
func (l *Library) Installed(conf *Conf) error {
	for _, kind := range conf.Types() {
		if kind == wire.PluginType {
			return fmt.Errorf("CNI plugin type %q is netplane's own and cannot be delegated to", kind)
		}
		if kind != filepath.Base(kind) {
			return fmt.Errorf("%q is no name of a CNI plugin", kind)
		}
		if _, err := os.Stat(filepath.Join(l.BinDir, kind)); err != nil {
			return fmt.Errorf("the node has no CNI plugin %q: install it into the runtime's folder of plugins", kind)
		}
	}
	return nil
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/cni/link"
)

// Limits of what a map file may name.
const (
	// maxAlias is the length of a DNS label (RFC 1123).
	maxAlias = 63
	// maxNIC is IFNAMSIZ less the terminating NUL (linux/if.h).
	maxNIC = 15
	// maxMapFile bounds what is read: a map has one short line per NIC.
	maxMapFile = 1 << 20
)

// Map is the node's own mapping. It replaces PhysicalNetworks' nodeInterfaces
// for the node as a whole, also when it maps nothing.
type Map struct {
	entries []mapEntry
}

type mapEntry struct {
	Alias  string `json:"alias"`
	RefNIC string `json:"ref_nic"`
}

type mapFile struct {
	Provider *[]mapEntry `json:"provider"`
}

// ReadMap reads the map file; a file that is not there is no map and no error.
func ReadMap(path string) (*Map, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading map file: %w", err)
	}
	parsed, err := ParseMap(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return parsed, nil
}

// ParseMap reads a map in the form
//
//	provider:
//	- {alias: phy-net0, ref_nic: eth1}
//
// Several entries with one alias give the physical network several NICs. It is
// strict: an error names the entry and the cure, and nothing of the map holds.
func ParseMap(raw []byte) (*Map, error) {
	if len(raw) > maxMapFile {
		return nil, fmt.Errorf("the file has %d bytes: a map has one short line per NIC", len(raw))
	}
	var file mapFile
	if err := yaml.UnmarshalStrict(raw, &file); err != nil {
		return nil, fmt.Errorf("the file is no map of the form \"provider: [{alias: phy-net0, ref_nic: eth1}]\": %w", cleanYAML(err))
	}
	if file.Provider == nil {
		return nil, errors.New("\"provider\" is missing: write \"provider: []\" if no NIC of this node is to be used, or remove the file to let nodeInterfaces of the PhysicalNetworks decide")
	}
	var problems []error
	users := map[string]int{}
	for i, entry := range *file.Provider {
		err := entry.check()
		if first, ok := users[entry.RefNIC]; ok && err == nil {
			err = entry.collision(first, (*file.Provider)[first])
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("provider entry %d: %w", i+1, err))
			continue
		}
		users[entry.RefNIC] = i
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return &Map{entries: *file.Provider}, nil
}

// cleanYAML drops the library's prefixes and Go's types, which mean nothing to
// an administrator.
func cleanYAML(err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return fmt.Errorf("%s is a %s", cmp.Or(wrongType.Field, "the whole"), wrongType.Value)
	}
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	return errors.New(strings.TrimPrefix(text, "error unmarshaling JSON: while decoding JSON: "))
}

func (e mapEntry) check() error {
	if e.Alias == "" {
		return errors.New("alias is missing: name the physical network, such as phy-net0")
	}
	if !isLabel(e.Alias) {
		return badAlias(e.Alias)
	}
	if e.RefNIC == "" {
		return fmt.Errorf("alias %q: ref_nic is missing: name the NIC, such as eth1", e.Alias)
	}
	if err := checkNIC(e.RefNIC); err != nil {
		return fmt.Errorf("alias %q: %w", e.Alias, err)
	}
	return nil
}

func (e mapEntry) collision(first int, other mapEntry) error {
	if other.Alias == e.Alias {
		return fmt.Errorf("alias %q: ref_nic %q is already named by entry %d: remove one of the two", e.Alias, e.RefNIC, first+1)
	}
	return fmt.Errorf("alias %q: ref_nic %q already backs %q (entry %d): a NIC backs one physical network", e.Alias, e.RefNIC, other.Alias, first+1)
}

// badAlias says which name to use instead: maps written after the talk name
// their networks phy_net0.
func badAlias(alias string) error {
	if cure := labelFrom(alias); cure != "" {
		return fmt.Errorf("alias %q is no DNS label, as a PhysicalNetwork's name must be: use %q", alias, cure)
	}
	return fmt.Errorf("alias %q is no DNS label, as a PhysicalNetwork's name must be: use lower case letters, digits and '-', such as \"phy-net0\"", alias)
}

// labelFrom turns a text into the DNS label nearest to it, or "" if nothing of
// it is left.
func labelFrom(text string) string {
	var out bytes.Buffer
	for _, c := range []byte(strings.ToLower(text)) {
		if !labelByte(c) {
			c = '-'
		}
		out.WriteByte(c)
	}
	label := strings.Trim(out.String(), "-")
	return strings.TrimRight(label[:min(len(label), maxAlias)], "-")
}

func isLabel(text string) bool {
	if text == "" || len(text) > maxAlias || text[0] == '-' || text[len(text)-1] == '-' {
		return false
	}
	for _, c := range []byte(text) {
		if !labelByte(c) {
			return false
		}
	}
	return true
}

func labelByte(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' }

// checkNIC refuses what the kernel refuses (dev_valid_name in net/core/dev.c).
func checkNIC(name string) error {
	if len(name) > maxNIC {
		return fmt.Errorf("ref_nic %q has %d characters: the kernel allows %d", name, len(name), maxNIC)
	}
	if name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r") {
		return fmt.Errorf("ref_nic %q is no interface name that the kernel allows: see the names in \"ip link\"", name)
	}
	if name == "lo" || link.Own(name) {
		return fmt.Errorf("ref_nic %q is no NIC: name one of the node's own, such as eth1", name)
	}
	return nil
}

// nics returns alias -> NICs in the file's order.
func (m *Map) nics() map[string][]string {
	out := make(map[string][]string, len(m.entries))
	for _, e := range m.entries {
		out[e.Alias] = append(out[e.Alias], e.RefNIC)
	}
	return out
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMap(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want map[string][]string
	}{
		"the talk's form": {
			text: "provider:\n- {alias: phy-net0, ref_nic: eth1}\n- {alias: phy-net1, ref_nic: eth2}\n",
			want: map[string][]string{"phy-net0": {"eth1"}, "phy-net1": {"eth2"}},
		},
		"several NICs of one alias keep the file's order": {
			text: "provider:\n- {alias: storage, ref_nic: ens2f1}\n- {alias: storage, ref_nic: ens2f0}\n",
			want: map[string][]string{"storage": {"ens2f1", "ens2f0"}},
		},
		"JSON":                        {text: `{"provider":[{"alias":"phy-net0","ref_nic":"eth1"}]}`, want: map[string][]string{"phy-net0": {"eth1"}}},
		"nothing mapped on purpose":   {text: "provider: []", want: map[string][]string{}},
		"a NIC name of 15 characters": {text: "provider: [{alias: a, ref_nic: enp129s0f1np1v2}]", want: map[string][]string{"a": {"enp129s0f1np1v2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseMap([]byte(test.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.nics()); diff != "" {
				t.Errorf("NICs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMapErrorsNameEntryAndCure(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"alias of the talk": {
			"provider: [{alias: phy-net1, ref_nic: eth2}, {alias: phy_net0, ref_nic: eth1}]",
			`provider entry 2: alias "phy_net0" is no DNS label, as a PhysicalNetwork's name must be: use "phy-net0"`,
		},
		"alias in capitals":       {"provider: [{alias: Storage.A_, ref_nic: eth1}]", `provider entry 1: alias "Storage.A_" is no DNS label, as a PhysicalNetwork's name must be: use "storage-a"`},
		"alias without letters":   {"provider: [{alias: ___, ref_nic: eth1}]", `provider entry 1: alias "___" is no DNS label, as a PhysicalNetwork's name must be: use lower case letters, digits and '-', such as "phy-net0"`},
		"alias too long":          {"provider: [{alias: " + strings.Repeat("a", 64) + ", ref_nic: eth1}]", `provider entry 1: alias "` + strings.Repeat("a", 64) + `" is no DNS label, as a PhysicalNetwork's name must be: use "` + strings.Repeat("a", 63) + `"`},
		"alias missing":           {"provider: [{ref_nic: eth1}]", "provider entry 1: alias is missing: name the physical network, such as phy-net0"},
		"NIC missing":             {"provider: [{alias: phy-net0}]", `provider entry 1: alias "phy-net0": ref_nic is missing: name the NIC, such as eth1`},
		"NIC of 16 characters":    {"provider: [{alias: phy-net0, ref_nic: enp129s0f1np1v21}]", `provider entry 1: alias "phy-net0": ref_nic "enp129s0f1np1v21" has 16 characters: the kernel allows 15`},
		"NIC with a slash":        {"provider: [{alias: phy-net0, ref_nic: eth1/0}]", `provider entry 1: alias "phy-net0": ref_nic "eth1/0" is no interface name that the kernel allows: see the names in "ip link"`},
		"loopback":                {"provider: [{alias: phy-net0, ref_nic: lo}]", `provider entry 1: alias "phy-net0": ref_nic "lo" is no NIC: name one of the node's own, such as eth1`},
		"our own bridge":          {"provider: [{alias: phy-net0, ref_nic: np-eth1}]", `provider entry 1: alias "phy-net0": ref_nic "np-eth1" is no NIC: name one of the node's own, such as eth1`},
		"one NIC for two aliases": {"provider: [{alias: phy-net0, ref_nic: eth1}, {alias: phy-net1, ref_nic: eth1}]", `provider entry 2: alias "phy-net1": ref_nic "eth1" already backs "phy-net0" (entry 1): a NIC backs one physical network`},
		"one entry twice":         {"provider: [{alias: phy-net0, ref_nic: eth1}, {alias: phy-net0, ref_nic: eth1}]", `provider entry 2: alias "phy-net0": ref_nic "eth1" is already named by entry 1: remove one of the two`},
		"two errors": {
			"provider: [{alias: a_b, ref_nic: eth1}, {alias: c}]",
			"provider entry 1: alias \"a_b\" is no DNS label, as a PhysicalNetwork's name must be: use \"a-b\"\nprovider entry 2: alias \"c\": ref_nic is missing: name the NIC, such as eth1",
		},
		"empty file":    {"", `"provider" is missing: write "provider: []" if no NIC of this node is to be used, or remove the file to let nodeInterfaces of the PhysicalNetworks decide`},
		"unknown key":   {"provider: [{alias: phy-net0, nic: eth1}]", `the file is no map of the form "provider: [{alias: phy-net0, ref_nic: eth1}]": json: unknown field "nic"`},
		"key given two": {"provider: []\nprovider: []", `the file is no map of the form "provider: [{alias: phy-net0, ref_nic: eth1}]": yaml: unmarshal errors:` + "\n" + `  line 2: key "provider" already set in map`},
		"no list":       {"provider: eth1", `the file is no map of the form "provider: [{alias: phy-net0, ref_nic: eth1}]": provider is a string`},
		"too large":     {"#" + strings.Repeat("x", maxMapFile), "the file has 1048577 bytes: a map has one short line per NIC"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseMap([]byte(test.text))
			if err == nil {
				t.Fatalf("no error, map %v", got.nics())
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadMap(t *testing.T) {
	dir := t.TempDir()
	t.Run("no file is no map and no error", func(t *testing.T) {
		if got, err := ReadMap(filepath.Join(dir, "absent")); got != nil || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("an error names the file", func(t *testing.T) {
		path := filepath.Join(dir, "map.yaml")
		if err := os.WriteFile(path, []byte("provider: [{alias: phy_net0, ref_nic: eth1}]"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadMap(path)
		if err == nil || !strings.HasPrefix(err.Error(), path+": provider entry 1: ") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a folder in its place is an error", func(t *testing.T) {
		if _, err := ReadMap(dir); err == nil || !strings.HasPrefix(err.Error(), "reading map file: ") {
			t.Errorf("error %v", err)
		}
	})
}

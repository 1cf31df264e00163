// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// object is one of what `ip -j` lists.
type object map[string]any

// ip has ip(8) carry out its commands in a namespace, with all details.
func (s *space) ip(t *testing.T, v6 bool, commands ...string) [][]object {
	t.Helper()
	var stdout, stderr bytes.Buffer
	args := []string{"-j", "-d", "-batch", "-"}
	if v6 {
		args = append(args, "-6")
	}
	err := s.in(func() error {
		command := exec.Command("ip", args...)
		command.Stdin, command.Stdout, command.Stderr = strings.NewReader(strings.Join(commands, "\n")+"\n"), &stdout, &stderr
		return command.Run()
	})
	if err != nil {
		t.Fatalf("ip %s: %v: %s", commands, err, &stderr)
	}
	decoder, out := json.NewDecoder(&stdout), make([][]object, len(commands))
	for i := range out {
		must(t, decoder.Decode(&out[i]))
	}
	return out
}

// hostEnd stands for the ends of pods' veths in a node: ports of a bridge
// whose other end is in another namespace, and no NIC.
const hostEnd = "host-end"

// text is what ip says of a namespace: its links with their addresses, all
// routes, all rules. What may differ between two plugins that do the same is
// left out: see plain.
func (s *space) text(t *testing.T) string {
	t.Helper()
	all := s.ip(t, false, "addr", "route show table all", "rule")
	links, names := all[0], map[string]string{}
	var out []string
	for _, l := range links {
		name := fmt.Sprint(l["ifname"])
		names[name] = name
		if info, _ := l["linkinfo"].(map[string]any); info["info_kind"] == "veth" && l["master"] != nil && name != "eth1" {
			names[name] = hostEnd
		}
	}
	for _, l := range links {
		out = append(out, linkText(l, names)...)
	}
	for _, r := range all[1] {
		if dev := names[fmt.Sprint(r["dev"])]; dev != hostEnd && dev != "lo" {
			out = append(out, "route "+plain(r))
		}
	}
	for _, r := range slices.Concat(all[2], s.ip(t, true, "rule")[0]) {
		out = append(out, "rule "+plain(r))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// linkText is a line for a link, and one for each of its addresses.
func linkText(l object, names map[string]string) []string {
	label := names[fmt.Sprint(l["ifname"])]
	addresses, _ := l["addr_info"].([]any)
	delete(l, "addr_info")
	l["ifname"] = label
	if label == hostEnd {
		// A port of a bridge has no use for a queue and addresses, and ours has none.
		delete(l, "address")
		delete(l, "txqlen")
		delete(l, "inet6_addr_gen_mode")
		addresses = nil
	}
	out := []string{"link " + label + " " + plain(l)}
	for _, a := range addresses {
		out = append(out, "link "+label+" address "+plain(a.(map[string]any)))
	}
	return out
}

// plain renders an object without indexes and ports' numbers, timers, marks
// that tell who made it, and how IPv6 was kept from looking for duplicates.
func plain(o map[string]any) string {
	raw, err := json.Marshal(stripped(o))
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func stripped(o map[string]any) map[string]any {
	out := map[string]any{}
	for key, value := range o {
		switch key {
		case "ifindex", "link", "link_index", "link_netnsid", "id", "no", "designated_port", "ifalias", "group", "protocol", "nodad":
			continue
		}
		if strings.HasSuffix(key, "timer") {
			continue
		}
		if inner, ok := value.(map[string]any); ok {
			value = stripped(inner)
		}
		out[key] = value
	}
	return out
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The examples of the NPWG specification v1.3, 4.1, and what is near to them.
func TestParseSelections(t *testing.T) {
	for text, want := range map[string][]string{
		"":                               nil,
		"net-a":                          {"default/net-a net1"},
		"net-a,net-b, other-ns/net-c":    {"default/net-a net1", "default/net-b net2", "other-ns/net-c net3"},
		"other-ns/net-c@eth5,net-a,x/y ": {"other-ns/net-c eth5", "default/net-a net2", "x/y net3"},
		"net-a@net2,net-b":               {"default/net-a net2", "default/net-b net3"},
		`[{"name":"net-a"},{"name":"net-b","namespace":"other-ns","interface":"data0","unknown":1}]`:                            {"default/net-a net1", "other-ns/net-b data0"},
		`[{"name":"net-a","ips":["10.2.2.42/24","fd00::1"],"mac":"c2:b0:57:49:47:f1","default-route":["10.2.2.1","fd00::2"]}]`:  {"default/net-a net1"},
		`[{"name":"net-a","infiniband-guid":"c2:11:22:33:44:55:66:77","cni-args":{"a":{"b":1}},"bandwidth":{"ingressRate":1}}]`: {"default/net-a net1"},
		"net-a.example": {"default/net-a.example net1"},
	} {
		got, err := ParseSelections(text, "default")
		if err == nil {
			err = NameSelections(got, nil)
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var lines []string
		for _, s := range got {
			lines = append(lines, s.Namespace+"/"+s.Name+" "+s.IfName)
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("%s:\n%s", text, diff)
		}
	}
}

func TestSelectionsThatCannotBe(t *testing.T) {
	for text, want := range map[string]string{
		"[":                      "no JSON list",
		"net-a,":                 "item 2 (default/): the name of the NetworkAttachmentDefinition is missing",
		"a/b/c":                  "lower case letters",
		"Net":                    "lower case letters",
		"net-a@name-of-16-chars": "the kernel allows 15",
		"a@x,b@x":                `item 2 (default/b): interface "x" is already used by item 1`,
		"a@eth0":                 `the pod has an interface "eth0" already`,
		"a@taken":                `the pod has an interface "taken" already`,
		`[{"name":"a","mac":"01:00:00:00:00:00"}]`:                                              "no MAC address",
		`[{"name":"a","ips":["x"]}]`:                                                            "no IP address",
		`[{"name":"a","default-route":["x"]}]`:                                                  "default-route",
		`[{"name":"a","infiniband-guid":"1"}]`:                                                  "no GUID",
		`[{"name":"a","default-route":["10.0.0.1"]},{"name":"b","default-route":["10.0.0.2"]}]`: "default-route is already asked for by item 1",
		strings.Repeat("a,", MaxRequests) + "a":                                                 "more than the 32",
	} {
		got, err := ParseSelections(text, "default")
		if err == nil {
			err = NameSelections(got, []string{"taken"})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestSelectionsAreNamedAroundTheOthers(t *testing.T) {
	selections := []Selection{{Name: "a"}, {Name: "b", IfName: "net1"}, {Name: "c"}}
	if err := NameSelections(selections, []string{"net3", "eth0"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range selections {
		got = append(got, s.IfName)
	}
	if diff := cmp.Diff([]string{"net2", "net1", "net4"}, got); diff != "" {
		t.Error(diff)
	}
}

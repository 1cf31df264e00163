// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseService(t *testing.T) {
	tests := map[string]struct {
		annotation string
		ports      map[string][]string // by port name, what ForPort returns
		networks   []string
	}{
		"all ports": {
			"management,data",
			map[string][]string{"": {"management", "data"}, "http": {"management", "data"}},
			[]string{"data", "management"},
		},
		"all ports, with spaces": {
			" management , data\n",
			map[string][]string{"http": {"management", "data"}},
			[]string{"data", "management"},
		},
		"the cluster's own": {
			"default, data",
			map[string][]string{"http": {"default", "data"}},
			[]string{"data", "default"},
		},
		"per port": {
			"http: [management, data]\nmetrics: [management]\n",
			map[string][]string{"http": {"management", "data"}, "metrics": {"management"}, "other": nil},
			[]string{"data", "management"},
		},
		"per port in JSON": {
			`{"http": ["data"], "metrics": ["default"]}`,
			map[string][]string{"http": {"data"}, "metrics": {"default"}},
			[]string{"data", "default"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseService(tt.annotation)
			if err != nil {
				t.Fatal(err)
			}
			for port, want := range tt.ports {
				if diff := cmp.Diff(want, got.ForPort(port)); diff != "" {
					t.Errorf("networks of port %q (-want +got):\n%s", port, diff)
				}
			}
			if diff := cmp.Diff(tt.networks, got.Networks()); diff != "" {
				t.Errorf("networks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseServiceNamesPortNetworkAndCure(t *testing.T) {
	tests := map[string]struct{ annotation, want string }{
		"empty":            {" ", "the list is empty: name at least one network, such as management,data"},
		"brackets":         {"[management, data]", "the networks of all ports are written without brackets and dashes, such as management,data"},
		"YAML list":        {"- management\n- data", "the networks of all ports are written without brackets and dashes, such as management,data"},
		"trailing comma":   {"management,", `item 2 (network ""): the network's name is missing`},
		"upper case":       {"management,Data", `item 2 (network "Data"): the name is no DNS label: a Network's name has lower case letters, digits and '-' only`},
		"twice":            {"data,management,data", `item 3 (network "data"): already named by item 1`},
		"an interface":     {"management@eth0", `item 1: "management@eth0" names the interface "eth0": a Service names the network alone, management`},
		"too many":         {strings.Repeat("n,", 32) + "n", "33 networks are more than the 32 that a port may have"},
		"empty map":        {"{} # :", "the map is empty: name the networks of each port, such as http: [management, data]"},
		"port without":     {"http: []", `port "http": the list is empty: name at least one network, or default for the cluster's own`},
		"port null":        {"http:", `port "http": its networks must be a list, such as [management, data]`},
		"port with text":   {"http: management", `port "http": its networks must be a list, such as [management, data]`},
		"number":           {"http: [5]", `port "http": item 1 is no text: put the network's name in quotes`},
		"bad name in port": {"http: [management]\nmetrics: [data, Data]", `port "metrics": item 2 (network "Data"): the name is no DNS label`},
		"port twice":       {"http: [data]\nhttp: [management]", `the annotation is no YAML map from port name to networks, such as http: [management, data]: `},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseService(tt.annotation)
			if err == nil {
				t.Fatalf("accepted as %+v", got)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("message %q, want in it %q", err, tt.want)
			}
		})
	}
}

func TestCheckPorts(t *testing.T) {
	tests := map[string]struct {
		annotation string
		ports      []string
		want       string
	}{
		"all ports fits every Service": {"management", []string{""}, ""},
		"all ports fits no port":       {"management", nil, ""},
		"every port named":             {"http: [data]\nmetrics: [data]", []string{"metrics", "http"}, ""},
		"a port that is not there":     {"http: [data]\nweb: [data]", []string{"http"}, `port "web": the Service has no port of this name`},
		"a port that is not named":     {"http: [data]", []string{"http", "metrics"}, `port "metrics": the map does not name it: add its networks, or metrics: [default] for the cluster's own`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			networks, err := ParseService(tt.annotation)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := networks.CheckPorts(tt.ports); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParseService(f *testing.F) {
	for _, seed := range []string{"management,data", "http: [management, data]\nmetrics: [default]", "http: &a [x]\nb: *a", "{}", "a: {b: c}", ":"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, annotation string) {
		got, err := ParseService(annotation)
		if err != nil {
			return
		}
		if len(got.Networks()) == 0 {
			t.Errorf("%q was accepted but names no network", annotation)
		}
		for _, name := range got.Networks() {
			if err := checkName(name); err != nil {
				t.Errorf("%q was accepted with the network %q: %v", annotation, name, err)
			}
		}
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package delegate

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

// newLibrary has files of configurations, and all plugins that they could need.
func newLibrary(t *testing.T, files map[string]string) *Library {
	t.Helper()
	l := &Library{ConfDir: t.TempDir(), BinDir: t.TempDir()}
	for name, text := range files {
		path := filepath.Join(l.ConfDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, plugin := range []string{"bridge", "flannel", "portmap", "ptp", "host-local"} {
		if err := os.WriteFile(filepath.Join(l.BinDir, plugin), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func aNetwork(plugin, config string, change ...func(*v1alpha1.NetworkSpec)) *v1alpha1.Network {
	n := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "overlay"}, Spec: v1alpha1.NetworkSpec{Plugin: plugin}}
	if config != "" {
		n.Spec.PluginConfig = &apiextensionsv1.JSON{Raw: []byte(config)}
	}
	for _, f := range change {
		f(&n.Spec)
	}
	return n
}

const (
	ours    = `{"cniVersion":"1.1.0","name":"netplane","plugins":[{"type":"netplane","wrapped":{"name":"cbr0"}}]}`
	flannel = `{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}`
	canal   = `{"cniVersion":"0.3.1","name":"Canal","type":"bridge","bridge":"canal0","ipam":{"type":"host-local","subnet":"10.99.0.0/24"}}`
)

func TestDefinitionsHaveAFolderOfTheirOwn(t *testing.T) {
	l := newLibrary(t, map[string]string{"10-flannel.conflist": flannel, "20-canal.conf": canal, "multus/1.conf": `{"name":"cbr0","type":"ptp"}`, "multus/2.conf": `{"name":"own","type":"ptp"}`})
	l.DefinitionDir = filepath.Join(l.ConfDir, "multus")
	for name, want := range map[string]string{"cbr0": "ptp", "own": "ptp", "Canal": "bridge", "gone": ""} {
		conf, err := l.Network(name)
		if want == "" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if err != nil || conf.Kind() != want {
			t.Errorf("%s: got %v, %v, want plugin %s", name, conf, err, want)
		}
	}
	if _, err := l.Named("own"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a Network found what is for definitions only: %v", err)
	}
	l.DefinitionDir = filepath.Join(l.ConfDir, "missing")
	if _, err := l.Network("cbr0"); err != nil {
		t.Error(err)
	}
}

func TestConfigurationOfANetwork(t *testing.T) {
	files := map[string]string{"00-netplane.conflist": ours, "10-flannel.conflist": flannel, "20-canal.conf": canal, "15-broken.conf": "{"}
	for name, test := range map[string]struct {
		files   map[string]string
		network *v1alpha1.Network
		want    string
		err     string
	}{
		"by plugin type, in another case, with its members merged": {
			files: files, network: aNetwork("Flannel", `{"delegate":{"isDefaultGateway":null,"mtu":1400}}`),
			want: `{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"delegate":{"hairpinMode":true,"mtu":1400},"type":"flannel"},{"capabilities":{"portMappings":true},"type":"portmap"}]}`,
		},
		"by network name, of one plugin alone": {
			files: files, network: aNetwork("canal", ""),
			want: `{"cniVersion":"0.3.1","name":"Canal","plugins":[{"bridge":"canal0","ipam":{"subnet":"10.99.0.0/24","type":"host-local"},"type":"bridge"}]}`,
		},
		"the name goes before the type": {
			files:   map[string]string{"1.conflist": flannel, "2.conf": `{"name":"flannel","type":"ptp"}`},
			network: aNetwork("flannel", ""),
			want:    `{"cniVersion":"1.0.0","name":"flannel","plugins":[{"type":"ptp"}]}`,
		},
		"plugins in files of their own": {
			files: map[string]string{
				"1.conflist":       `{"cniVersion":"1.1.0","name":"apart","plugins":[{"type":"bridge"}]}`,
				"apart/2.conf":     `{"type":"portmap"}`,
				"elsewhere/3.conf": `{"type":"ptp"}`,
			},
			network: aNetwork("apart", ""),
			want:    `{"cniVersion":"1.1.0","name":"apart","plugins":[{"type":"bridge"},{"type":"portmap"}]}`,
		},
		"a complete pluginConfig is not mixed with what is installed": {
			files: files, network: aNetwork("flannel", `{"type":"ptp","ipam":{"type":"host-local"}}`),
			want: `{"cniVersion":"1.0.0","name":"overlay","plugins":[{"ipam":{"type":"host-local"},"type":"ptp"}]}`,
		},
		"a complete list": {
			network: aNetwork("mine", `{"cniVersion":"1.1.0","name":"n","disableCheck":true,"plugins":[{"type":"ptp"},{"type":"portmap"}]}`),
			want:    `{"cniVersion":"1.1.0","disableCheck":true,"name":"n","plugins":[{"type":"ptp"},{"type":"portmap"}]}`,
		},
		"the Network's mtu": {
			network: aNetwork("ptp", `{"type":"ptp"}`, func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 }),
			want:    `{"cniVersion":"1.0.0","name":"overlay","plugins":[{"mtu":1400,"type":"ptp"}]}`,
		},
		"the plugin's own mtu": {
			network: aNetwork("ptp", `{"type":"ptp","mtu":1300}`, func(s *v1alpha1.NetworkSpec) { s.MTU = 1400 }),
			want:    `{"cniVersion":"1.0.0","name":"overlay","plugins":[{"mtu":1300,"type":"ptp"}]}`,
		},
		"nothing installed": {
			files: files, network: aNetwork("calico", `{"mtu":1}`),
			err: `no CNI configuration of a network or plugin "calico": install it, or write a complete spec.pluginConfig`,
		},
		"never netplane's own":      {files: files, network: aNetwork("netplane", ""), err: "no CNI configuration"},
		"never netplane as a type":  {network: aNetwork("x", `{"type":"netplane"}`), err: `"netplane" is netplane's own`},
		"a binary that is missing":  {network: aNetwork("x", `{"type":"sriov"}`), err: `no CNI plugin "sriov"`},
		"an IPAM that is missing":   {network: aNetwork("x", `{"type":"ptp","ipam":{"type":"dhcp"}}`), err: `no CNI plugin "dhcp"`},
		"a path instead of a type":  {network: aNetwork("x", `{"type":"../ptp"}`), err: `"../ptp" is no name of a CNI plugin`},
		"plugins that are no list":  {network: aNetwork("x", `{"plugins":{}}`), err: "spec.pluginConfig: a CNI configuration has a type"},
		"plugins that are none":     {network: aNetwork("x", `{"plugins":[1]}`), err: "plugins are objects"},
		"a plugin without a type":   {network: aNetwork("x", `{"plugins":[{"a":1}]}`), err: "spec.pluginConfig: "},
		"a patch that breaks it":    {files: files, network: aNetwork("flannel", `{"capabilities":7}`), err: "spec.pluginConfig: "},
		"no folder: nothing is set": {files: nil, network: aNetwork("flannel", ""), err: "no CNI configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			conf, err := newLibrary(t, test.files).Configuration(test.network)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			raw, err := conf.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, string(raw)); diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOurAddressesTakeThePlaceOfThePluginsIPAM(t *testing.T) {
	for name, test := range map[string]struct{ conf, want string }{
		"that has one": {
			conf: `{"name":"n","plugins":[{"type":"a"},{"type":"b","ipam":{"type":"dhcp","x":1}}]}`,
			want: `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"},{"ipam":{"type":"netplane","addresses":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"}]},"type":"b"}]}`,
		},
		"that has none": {
			conf: `{"name":"n","plugins":[{"type":"a"},{"type":"b"}]}`,
			want: `{"cniVersion":"1.0.0","name":"n","plugins":[{"ipam":{"type":"netplane","addresses":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"}]},"type":"a"},{"type":"b"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			conf, err := Parse([]byte(test.conf), "")
			if err != nil {
				t.Fatal(err)
			}
			conf.SetIPAM(&wire.IPAM{Type: wire.PluginType, Addresses: []wire.IPAMAddress{{Address: "10.0.0.2/24", Gateway: "10.0.0.1"}}})
			raw, err := conf.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, string(raw)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhatIsExecutedAndDeclared(t *testing.T) {
	conf, err := Parse([]byte(`{"name":"n","plugins":[{"type":"b","ipam":{"type":"host-local"},"capabilities":{"mac":true,"ips":false}},{"type":"a"},{"type":"a"}]}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b", "host-local"}, conf.Types()); diff != "" {
		t.Error(diff)
	}
	for capability, want := range map[string]bool{"mac": true, "ips": false, "portMappings": false} {
		if got := conf.Capable(capability); got != want {
			t.Errorf("%s: got %t", capability, got)
		}
	}
	if _, err := Parse([]byte(`{"type":"a"}`), ""); err == nil {
		t.Error("a configuration without a name was taken")
	}
}

// The examples of RFC 7386, appendix A, that are about objects.
func TestMergePatch(t *testing.T) {
	for _, test := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`},
		{`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`},
	} {
		var target, patch map[string]any
		if err := json.Unmarshal([]byte(test[0]), &target); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(test[1]), &patch); err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(mergePatch(target, patch))
		if err != nil || string(got) != test[2] {
			t.Errorf("%s patched with %s: got %s, %v, want %s", test[0], test[1], got, err, test[2])
		}
	}
}

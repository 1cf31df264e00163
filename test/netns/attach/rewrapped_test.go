// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/install"
)

// rewrap has the node's first configuration be another, as when its network is
// replaced, and the runtime read ours anew.
func (h *host) rewrap(file, conf string) {
	h.t.Helper()
	must(h.t, os.WriteFile(filepath.Join(h.conf, file), []byte(conf), 0o600))
	must(h.t, h.installer.Sync(h.t.Context()))
	list, err := libcni.NetworkConfFromFile(filepath.Join(h.conf, install.ConfName))
	must(h.t, err)
	h.list = list
}

// TestPodsAreRemovedByWhatMadeThem: the cluster's network is replaced while pods
// run. CHECK and DEL of theirs go to the plugins that made them, with the
// configuration of then.
func TestPodsAreRemovedByWhatMadeThem(t *testing.T) {
	const other = `{"cniVersion":"1.1.0","name":"other-net","plugins":[{"type":"other"}]}`
	for name, test := range map[string]struct {
		file, conf   string
		gone         bool // the former plugin, too
		want, former string
	}{
		"by another network":             {file: "05-other.conflist", conf: other, want: "cluster", former: `"of":"then"`},
		"by another of the same name":    {file: "10-cluster.conflist", conf: strings.ReplaceAll(clusterConf, "portMappings", "bandwidth"), want: "cluster", former: `"of":"then"`},
		"and its plugin is gone as well": {file: "05-other.conflist", conf: other, gone: true, want: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, network("data", v1alpha1.PluginBridge, nil))
			must(t, os.WriteFile(filepath.Join(h.bin, "other"), []byte(clusterPlugin), 0o755))
			h.rewrap("10-cluster.conflist", strings.Replace(clusterConf, `"type":"cluster"`, `"type":"cluster","of":"then"`, 1))
			h.start(t)
			plain, asking, onEth0 := h.runtimeConf("plain", newSpace(t, "plain"), map[string]string{}), h.runtimeConf("asking", newSpace(t, "asking"), asks("data")), h.runtimeConf("eth0", newSpace(t, "eth0"), asks("data@eth0"))
			for _, rt := range []*libcni.RuntimeConf{plain, asking, onEth0} {
				_, err := h.cniAdd(rt)
				must(t, err)
			}
			h.callsOf("cluster")
			h.rewrap(test.file, test.conf)
			if test.gone {
				must(t, os.Remove(filepath.Join(h.bin, "cluster")))
			}
			want := []string{"DEL plain eth0", "DEL asking eth0"}
			if !test.gone {
				must(t, h.cniCheck(plain))
				must(t, h.cniCheck(asking))
				must(t, h.cniCheck(onEth0))
				want = append([]string{"CHECK plain eth0", "CHECK asking eth0"}, want...)
			}
			must(t, h.cniDel(plain))
			must(t, h.cniDel(asking))
			if diff := cmp.Diff(want, h.callsOf(test.want)); diff != "" {
				t.Errorf("calls of %s (-want +got):\n%s", test.want, diff)
			}
			raw, err := os.ReadFile(filepath.Join(h.bin, test.want+".stdin.DEL"))
			must(t, err)
			var given map[string]any
			must(t, json.Unmarshal(raw, &given))
			if _, ok := given["prevResult"]; ok != !test.gone || !strings.Contains(string(raw), test.former) {
				t.Errorf("DEL was given %s", raw)
			}
			must(t, h.cniDel(onEth0))
			_, err = h.cniAdd(h.runtimeConf("new", newSpace(t, "new"), map[string]string{}))
			must(t, err)
		})
	}
}

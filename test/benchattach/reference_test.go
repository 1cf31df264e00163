// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchattach

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

// pluginsVariable names the folder of the reference plugins, which
// hack/binaries.sh builds from their module.
const pluginsVariable = "BENCH_PLUGINS"

type object = map[string]any

// referencePlugins is the folder of the reference plugins.
func referencePlugins(b *testing.B) string {
	b.Helper()
	folder := os.Getenv(pluginsVariable)
	if folder == "" {
		b.Skipf("%s is not set: run the benchmark through make bench-attach", pluginsVariable)
	}
	return folder
}

// newReference is the way of Multus: a configuration for each attachment, each
// executed for itself, with the addresses of host-local.
func newReference(b *testing.B, s shape) way {
	b.Helper()
	out := &runtime{cni: libcni.NewCNIConfig([]string{referencePlugins(b)}, nil)}
	data := b.TempDir()
	for i := range s.interfaces {
		ranges := []any{[]any{object{"subnet": fmt.Sprintf("10.%d.0.0/16", 100+i), "gateway": fmt.Sprintf("10.%d.0.1", 100+i)}}}
		if s.dual {
			ranges = append(ranges, []any{object{"subnet": fmt.Sprintf("fd00:100:%d::/64", i), "gateway": fmt.Sprintf("fd00:100:%d::1", i)}})
		}
		ipam := object{"type": "host-local", "dataDir": data, "ranges": ranges}
		plugin := object{"type": "macvlan", "master": nicPlain, "mode": "bridge", "ipam": ipam}
		if i == 0 {
			routes := []any{object{"dst": "0.0.0.0/0"}}
			if s.dual {
				routes = append(routes, object{"dst": "::/0"})
			}
			ipam["routes"] = routes
			plugin = object{"type": "bridge", "bridge": "reference", "ipam": ipam}
		}
		raw, err := json.Marshal(object{"cniVersion": "1.0.0", "name": fmt.Sprintf("reference-%s-%d", s, i), "plugins": []any{plugin}})
		must(b, err)
		list, err := libcni.NetworkConfFromBytes(raw)
		must(b, err)
		out.attachments = append(out.attachments, attachment{list: list, ifname: ifName(i)})
	}
	return out
}

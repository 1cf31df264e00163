// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"
)

// runtimeNamespaces is where runtimes keep the network namespaces of pods.
const runtimeNamespaces = "/var/run/netns"

// sweep removes the links of the host that are netplane's and of no sandbox, when
// the agent starts: a link without a record is nobody's to remove later. Nothing is
// removed if some record could not be read, or if there never were records: then
// what is known of the node was lost, and pods may live.
func (s *Server) sweep(ctx context.Context) {
	logger := klog.FromContext(ctx)
	if s.blind() || !s.records.exist() {
		return
	}
	var keep []string
	folders := []string{runtimeNamespaces}
	for _, sandbox := range s.snapshot() {
		for _, iface := range sandbox.links() {
			keep = append(keep, iface.HostEnd)
		}
		if sandbox.Path != nil {
			keep = append(keep, sandbox.Path.Device)
		}
		folders = append(folders, filepath.Dir(sandbox.NetNS))
	}
	slices.Sort(folders)
	removed, err := s.deps.HostLinks.Sweep(ctx, keep, slices.Compact(folders))
	if len(removed) > 0 {
		logger.Info("Removed links of the host that no sandbox has", "links", removed)
	}
	if err != nil {
		logger.Error(err, "Kept links of the host that no sandbox has")
	}
}

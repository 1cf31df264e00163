// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"github.com/netplane/netplane/api/v1alpha1"
)

// Delegates knows which CNI configurations and plugins the node has installed.
type Delegates interface {
	// Check says why the node cannot run a Network's plugin, which is not built in.
	Check(network *v1alpha1.Network) error
}

// notInstalled finds the Networks whose plugin the node cannot run, and why.
func (i *Inventory) notInstalled(networks []v1alpha1.Network) map[string]string {
	if i.deps.Delegates == nil {
		return nil
	}
	out := map[string]string{}
	for n := range networks {
		if !networks[n].Spec.Delegated() {
			continue
		}
		if err := i.deps.Delegates.Check(&networks[n]); err != nil {
			out[networks[n].Name] = err.Error()
		}
	}
	return out
}

// refuseDelegates refuses those of them whose physical network the node backs.
func refuseDelegates(s *Snapshot, in *Input) {
	for i := range in.Networks {
		n := &in.Networks[i]
		message, lacks := in.NotInstalled[n.Name]
		if lacks && len(s.parents[n.Spec.PhysicalNet]) > 0 {
			s.refused[n.Name] = v1alpha1.RefusedNetwork{Network: n.Name, Reason: v1alpha1.ReasonPluginNotInstalled, Message: message}
		}
	}
}

// anyChanged asks all of them: each remembers what it saw.
func anyChanged(watched []mapWatch) bool {
	changed := false
	for i := range watched {
		changed = watched[i].changed() || changed
	}
	return changed
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Delete removes interfaces from a pod's namespace, the last first. What is gone
// already, the whole namespace included, is no error.
func (l *Links) Delete(ctx context.Context, netnsPath string, specs ...Interface) error {
	err := l.inPod(ctx, l.removals, netnsPath, func(p *pod) error { return p.removeAll(specs) })
	if errors.Is(err, ErrNamespaceGone) {
		return l.cleanAll(specs)
	}
	return err
}

func (p *pod) removeAll(specs []Interface) error {
	names := make([]string, len(specs))
	for i := range specs {
		names[i] = specs[i].Name
	}
	found, err := p.inside.find(names)
	if err != nil {
		return err
	}
	var rules, links []*request
	var indexes []int
	for i := range slices.Backward(specs) {
		present, err := found[i].link()
		if IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		index := present.Attrs().Index
		rules = append(rules, dropSources(index, &specs[i])...)
		if kind, _ := makerOf(specs[i].Kind); kind.remove == nil {
			links, indexes = append(links, deleteIndex(index, names[i])), append(indexes, index)
		}
	}
	if err := p.inside.runAll(rules); err != nil && !IsGone(err) {
		return err
	}
	for i := range slices.Backward(specs) {
		kind, _ := makerOf(specs[i].Kind)
		if kind.remove == nil {
			continue
		}
		if err := kind.remove(p, &specs[i]); err != nil && !IsGone(err) {
			return fmt.Errorf("removing %s: %w", names[i], err)
		}
	}
	if err := p.deleteLinks(links, indexes); err != nil {
		return err
	}
	return p.cleanAll(specs)
}

// deleteLinks deletes links of the pod, if there are several as one group: the
// kernel waits some milliseconds until nobody uses a link that goes, several
// times, and so but once for all (rtnl_group_dellink in net/core/rtnetlink.c).
func (p *pod) deleteLinks(links []*request, indexes []int) error {
	if len(links) > 1 {
		var group []*request
		for _, index := range indexes {
			group = append(group, regroup(index, linkGroup))
		}
		if p.inside.runAll(append(group, deleteGroup(linkGroup))) == nil {
			return nil
		}
		// One among them is of a kind that the kernel deletes in no group.
	}
	if err := p.inside.run(links); err != nil {
		return err
	}
	for _, r := range links {
		if err := r.failure(); err != nil && !IsGone(err) {
			return err
		}
	}
	return nil
}

// cleanAll takes back what interfaces have in the host's namespace.
func (l *Links) cleanAll(specs []Interface) error {
	for i := range slices.Backward(specs) {
		kind, _ := makerOf(specs[i].Kind)
		if kind.clean == nil {
			continue
		}
		if err := kind.clean(l, &specs[i]); err != nil {
			return fmt.Errorf("removing %s: %w", specs[i].Name, err)
		}
	}
	return nil
}

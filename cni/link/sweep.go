// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Sweep removes the host's ends of pods' veths, and shims, that are netplane's by
// name and kind and not among those to keep. A host's end stays whose other end is
// in a namespace that lives: one that a file in one of the folders leads to. It
// returns what it removed, after an error too.
func (l *Links) Sweep(ctx context.Context, keep, folders []string) (removed []string, err error) {
	_, leave, err := l.changes.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	all, err := dump(l.host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var failed []error
	for _, found := range all {
		name := found.Attrs().Name
		if slices.Contains(keep, name) || !Own(name) {
			continue
		}
		switch {
		case strings.HasPrefix(name, hostEndPrefix) && found.Type() == KindVeth:
			lives, err := l.peerLives(found, folders)
			if err != nil {
				failed = append(failed, fmt.Errorf("looking for the pod of %s: %w", name, err))
			}
			if lives || err != nil {
				continue
			}
		case strings.HasPrefix(name, shimPrefix) && found.Type() == KindMacvlan:
		default:
			continue
		}
		if err := l.host.LinkDel(found); err != nil && !IsGone(err) {
			failed = append(failed, fmt.Errorf("removing %s: %w", name, err))
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(failed...)
}

// peerLives says that the other end of a veth is in a namespace that a file in one
// of the folders leads to. The kernel tells that namespace by the number that the
// host's has for it (IFLA_LINK_NETNSID), and none if it is the host's own.
func (l *Links) peerLives(end netlink.Link, folders []string) (bool, error) {
	id := end.Attrs().NetNsID
	if id < 0 {
		return false, nil
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		for _, entry := range entries {
			ns, err := openNamespace(filepath.Join(folder, entry.Name()))
			if IsGone(err) {
				continue
			}
			if err != nil {
				return false, err
			}
			has, err := l.host.GetNetNsIdByFd(int(ns))
			if err = errors.Join(err, ns.Close()); err != nil {
				return false, err
			}
			if has == id {
				return true, nil
			}
		}
	}
	return false, nil
}

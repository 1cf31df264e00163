// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// pod is one pod's namespace, open for one operation, on a thread inside it.
type pod struct {
	*Links
	ns netns.NsHandle
	// handle asks in the namespace of the thread, the pod's, by a socket for each
	// request: for what is not asked in a batch.
	handle *netlink.Handle
	// inside and outside are the sockets of the pod's and the host's namespace.
	inside, outside *conn
	// parents are the host's devices that the interfaces stand on, by name.
	parents map[string]*request
}

// inPod waits for a slot and has f work on a thread inside a pod's namespace.
func (l *Links) inPod(ctx context.Context, by slots, path string, f func(*pod) error) error {
	outside, leave, err := by.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return inNamespaceOf(path, func(ns netns.NsHandle, inside *conn) error {
		return f(&pod{Links: l, ns: ns, handle: &netlink.Handle{}, inside: inside, outside: outside})
	})
}

// inNamespaceOf has f work on a thread inside the namespace of a path, with a socket there.
func inNamespaceOf(path string, f func(ns netns.NsHandle, inside *conn) error) error {
	ns, err := openNamespace(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return inNamespace(ns, func() error {
		inside, err := openConn()
		if err != nil {
			return err
		}
		defer inside.close()
		return f(ns, inside)
	})
}

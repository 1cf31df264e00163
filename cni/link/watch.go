// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// watchBatch gathers the handful of messages that one change causes.
	watchBatch = 100 * time.Millisecond
	// watchBuffer holds the messages of some hundred pods starting at once;
	// beyond it the kernel drops messages and says ENOBUFS.
	watchBuffer = 1 << 20
)

// Watch signals that links, addresses or default routes changed: one signal
// for all that happens within 100 ms, and one to begin with, so that a caller
// who lists on every signal has subscribed before it lists. Signals carry no
// data. The channel is closed when ctx ends or the kernel dropped messages;
// then the caller watches, and thereby lists, anew.
func (d *Devices) Watch(ctx context.Context) (<-chan struct{}, error) {
	socket, err := nl.SubscribeAt(d.ns, netns.None(), unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("subscribing to link changes: %w", err)
	}
	// Needs CAP_NET_ADMIN in the first user namespace; the default buffer will
	// do where it is refused, with more restarts.
	_ = socket.SetReceiveBufferSize(watchBuffer, true)

	changes := make(chan struct{}, 1)
	changes <- struct{}{}
	stop := context.AfterFunc(ctx, socket.Close)
	go func() {
		defer close(changes)
		defer socket.Close()
		defer stop()
		for receiveChange(socket) {
			if !gather(ctx, socket) {
				return
			}
			select {
			case changes <- struct{}{}:
			default: // a signal is already waiting; its reader will list after this change
			}
		}
	}()
	return changes, nil
}

// receiveChange blocks until a message that matters came; false means that
// the socket is of no more use.
func receiveChange(socket *nl.NetlinkSocket) bool {
	for {
		messages, _, err := socket.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false
		}
		for i := range messages {
			if relevant(&messages[i]) {
				return true
			}
		}
	}
}

// gather swallows what follows within the batch time, so that a burst costs
// one listing.
func gather(ctx context.Context, socket *nl.NetlinkSocket) bool {
	deadline := time.Now().Add(watchBatch)
	for left := watchBatch; left > time.Millisecond; left = time.Until(deadline) {
		timeout := unix.NsecToTimeval(left.Nanoseconds())
		if err := socket.SetReceiveTimeout(&timeout); err != nil {
			return false
		}
		_, _, err := socket.Receive()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
	return ctx.Err() == nil && socket.SetReceiveTimeout(&unix.Timeval{}) == nil
}

// relevant passes over all routes but default ones: on a node with many pods
// most messages are of host routes.
func relevant(m *syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// struct rtmsg: family, dst_len, ... (rtnetlink(7))
		return len(m.Data) > 1 && m.Data[1] == 0
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	}
	return false
}

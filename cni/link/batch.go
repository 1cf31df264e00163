// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What a pod's ADD asks of the kernel is some thirty requests. The library
// sends each for itself, waits for its acknowledgement, and looks most links up
// again; half of the time went there. Here the kernel gets them together: it
// carries out all requests of one message in order (netlink_rcv_skb in
// net/netlink/af_netlink.c), before the system call returns.

// batchSize bounds the requests of one message, so that all answers fit into
// the socket's receive buffer: an answer to a look-up is some 1.5 kB.
const batchSize = 64

// conn is a netlink socket of one namespace for several requests at a time. It
// is for one goroutine at a time.
type conn struct {
	fd     int
	serial uint32
	buffer []byte
}

// openConn opens a socket in the network namespace of the calling thread.
func openConn() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink socket: %w", err)
	}
	return &conn{fd: fd, buffer: make([]byte, 32<<10)}, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// request is one request of a batch, and what became of it.
type request struct {
	*nl.NetlinkRequest
	// what tells in an error what was tried; parent is the host's device that it
	// was tried on, if any.
	what, parent string
	// mayExist: it is no error that what is to be added is there.
	mayExist bool
	// answer is what a look-up found, without the header of the message.
	answer []byte
	// err is the kernel's errno; nil if it did what was asked.
	err error
}

// failure is nil, or says what was tried.
func (r *request) failure() error {
	if r.err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", r.what, explain(r.err, r.parent))
}

// run has the kernel carry out requests in order. After one that fails it goes
// on with the next: the caller looks at each. An error means that nobody knows
// what became of them.
func (c *conn) run(requests []*request) error {
	for part := range slices.Chunk(requests, batchSize) {
		if err := c.exchange(part); err != nil {
			return fmt.Errorf("asking the kernel for %d changes: %w", len(part), err)
		}
	}
	return nil
}

// runAll is run for requests that must all succeed; the first failure counts.
func (c *conn) runAll(requests []*request) error {
	if err := c.run(requests); err != nil {
		return err
	}
	for _, r := range requests {
		if err := r.failure(); err != nil {
			return err
		}
	}
	return nil
}

// exchange sends one message. Only the last request is acknowledged if it
// succeeds; all that fail are.
func (c *conn) exchange(requests []*request) error {
	first := c.serial
	var out []byte
	for _, r := range requests {
		r.Seq = c.serial
		c.serial++
		if r == requests[len(requests)-1] {
			r.Flags |= unix.NLM_F_ACK
		}
		out = append(out, r.Serialize()...)
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buffer, unix.MSG_DONTWAIT) // all answers are there
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(c.buffer[:n])
		if err != nil {
			return err
		}
		for i := range messages {
			at := int(messages[i].Header.Seq - first)
			if at >= len(requests) {
				continue // of an exchange that failed
			}
			done, err := requests[at].take(&messages[i])
			if err != nil {
				return err
			}
			if done && at == len(requests)-1 {
				return nil
			}
		}
	}
}

// take notes an answer, and says whether it was the last to this request.
func (r *request) take(m *syscall.NetlinkMessage) (done bool, err error) {
	if m.Header.Type != unix.NLMSG_ERROR {
		r.answer = slices.Clone(m.Data)
		return false, nil
	}
	if len(m.Data) < 4 {
		return false, errors.New("short acknowledgement")
	}
	if errno := int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
		r.err = unix.Errno(-errno)
	}
	if r.mayExist && isExists(r.err) {
		r.err = nil
	}
	return true, nil
}

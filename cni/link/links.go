// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// parallel bounds the changes under way: more of them only queue for the
// kernel's RTNL mutex and make each other slower.
const parallel = 4

// removing bounds those under way that remove links. They mostly wait for the kernel,
// without the mutex, until nobody uses what goes (rcu_barrier in net/core/dev.c, some 20
// ms): the more wait at once, the more go in that time, and none keeps an ADD waiting.
const removing = 16

// Config says where the host is.
type Config struct {
	// NetNS is the path of the host's network namespace; empty means the
	// process's own. Tests set it.
	NetNS string
	// ProcSys is a writable /proc/sys. A container has its own read-only, so
	// the agent mounts the host's. The kernel shows net/ of the namespace of
	// the thread that looks, whichever mount it looks through.
	ProcSys string
}

// Links changes links, in the host's namespace and in those of pods. It is
// safe for concurrent use.
type Links struct {
	procSys string
	ns      netns.NsHandle
	// own: ns is the process's.
	own  bool
	host *netlink.Handle
	// socket is one of the host's namespace, for ioctls.
	socket            int
	changes, removals slots
	// parents is held while what interfaces stand on is looked for, made or removed.
	parents sync.Mutex
	// untagged is held while rules against VLAN tags of pods are made; keepsUntagged:
	// they stand, cannotUntag: the kernel has none.
	untagged                   sync.Mutex
	keepsUntagged, cannotUntag bool
}

// Open opens the host's namespace.
func Open(config Config) (*Links, error) {
	ns, err := netns.Get()
	if config.NetNS != "" {
		ns, err = openNamespace(config.NetNS)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the host's network namespace: %w", err)
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("opening netlink socket: %w", err)
	}
	if config.ProcSys == "" {
		config.ProcSys = "/proc/sys"
	}
	l := &Links{procSys: config.ProcSys, ns: ns, own: config.NetNS == "", host: handle, socket: -1, changes: make(slots, parallel), removals: make(slots, removing)}
	if err := inNamespace(ns, l.openSockets); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// openSockets opens those of the host's namespace, where it runs.
func (l *Links) openSockets() (err error) {
	if l.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("opening socket: %w", err)
	}
	for _, kind := range []slots{l.changes, l.removals} {
		for range cap(kind) {
			slot, err := openConn()
			if err != nil {
				return err
			}
			kind <- slot
		}
	}
	return nil
}

// Close frees the sockets; the Links cannot be used after it.
func (l *Links) Close() {
	for _, kind := range []slots{l.changes, l.removals} {
		for len(kind) > 0 {
			(<-kind).close()
		}
	}
	if l.socket >= 0 {
		_ = unix.Close(l.socket)
	}
	l.host.Close()
	_ = l.ns.Close()
}

// slots are sockets of the host's namespace; who has one may change links.
type slots chan *conn

// enter waits for a slot. It returns the socket of the host's namespace that
// comes with it, and what frees both. Who waits longest is next.
func (s slots) enter(ctx context.Context) (*conn, func(), error) {
	select {
	case socket := <-s:
		return socket, func() { s <- socket }, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// Exists says whether a path leads to a network namespace. Where it cannot be
// told it does, as what lives must not be freed: no file descriptors are left,
// or the folder is missing too, so that our view of the host lacks something.
func Exists(path string) bool {
	ns, err := openNamespace(path)
	if err == nil {
		_ = ns.Close()
		return true
	}
	if _, parentErr := os.Stat(filepath.Dir(path)); parentErr != nil {
		return true
	}
	return !IsGone(err)
}

func openNamespace(path string) (netns.NsHandle, error) {
	if path == "" {
		return netns.None(), ErrNamespaceGone
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if IsGone(err) {
		return netns.None(), fmt.Errorf("%s: %w", path, ErrNamespaceGone)
	}
	if err != nil {
		return netns.None(), fmt.Errorf("opening %s: %w", path, err)
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(fd, &stat); err != nil {
		_ = unix.Close(fd)
		return netns.None(), fmt.Errorf("looking at %s: %w", path, err)
	}
	if stat.Type != unix.NSFS_MAGIC {
		_ = unix.Close(fd)
		return netns.None(), fmt.Errorf("%s is no namespace file: %w", path, ErrNamespaceGone)
	}
	return netns.NsHandle(fd), nil
}

// inNamespace runs f on a thread inside ns. The thread is given back only when
// it has returned to where it came from, else it ends with the goroutine: no
// other one ever runs in a pod's namespace. A process's first thread never ends:
// left where it is, it would keep a pod's namespace, with all links in it, for
// as long as the agent runs.
func inNamespace(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			done <- fmt.Errorf("opening the present network namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("entering network namespace: %w", err)
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// sysctl is one setting below net/.
type sysctl struct{ path, value string }

// contended says that the kernel takes the RTNL mutex to change a setting, and
// has the caller spin for it. What is so already is therefore not written.
func (s sysctl) contended() bool {
	return strings.HasSuffix(s.path, "/disable_ipv6") || strings.HasSuffix(s.path, "/forwarding")
}

// needless says that a setting could not be made because there is nothing to
// set: without IPv6 in the kernel no router is listened to.
func (s sysctl) needless(err error) bool {
	return strings.HasSuffix(s.path, "/accept_ra") && errors.Is(err, fs.ErrNotExist)
}

// setSysctls writes settings of the host, see writeSysctls. It is not for a
// thread that works in a pod.
func (l *Links) setSysctls(settings []sysctl) error {
	if l.own {
		return l.writeSysctls(settings)
	}
	return inNamespace(l.ns, func() error { return l.writeSysctls(settings) })
}

// writeSysctls writes all settings in the namespace of the thread and returns
// the first failure; the rest is written all the same.
func (l *Links) writeSysctls(settings []sysctl) error {
	var first error
	for _, s := range settings {
		path := filepath.Join(l.procSys, "net", s.path)
		if s.contended() {
			if present, err := readSetting(path); err == nil && present == s.value {
				continue
			}
		}
		if err := writeSetting(path, s.value); err != nil && first == nil && !s.needless(err) {
			first = fmt.Errorf("setting net/%s to %s: %w", s.path, s.value, err)
		}
	}
	return first
}

// readSetting and writeSetting do without package os: it hands each file of /proc/sys
// to the runtime's poller, which wakes another thread.
func readSetting(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	var value [256]byte // more than any of an interface
	n, err := unix.Read(fd, value[:])
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(value[:n])), nil
}

func writeSetting(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	_, err = unix.Write(fd, []byte(value))
	return err
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	addr := prefix.Addr()
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), addr.BitLen())}
}

func single(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// nlAddr skips duplicate address detection: addressing makes each address
// unique, and the wait for it takes seconds.
func nlAddr(prefix netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func hasIPv6(prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

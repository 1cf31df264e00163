// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNamespaceGone is returned for a path that leads to no network namespace:
// it was deleted, or it is the empty file that a removed bind mount leaves.
var ErrNamespaceGone = errors.New("the network namespace is gone")

// LeftError is returned when interfaces could not be made and some of them may be
// there, since they could not be removed either.
type LeftError struct {
	Names []string
	Err   error
}

// Error tells why both failed.
func (e *LeftError) Error() string { return e.Err.Error() }

// Unwrap returns why both failed.
func (e *LeftError) Unwrap() error { return e.Err }

// IsGone says that what was to be changed does not exist (any more).
func IsGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.Is(err, ErrNamespaceGone) || errors.As(err, &notFound) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// isExists says that the kernel has a link, address or route of that name.
func isExists(err error) bool { return errors.Is(err, unix.EEXIST) }

// refused adds to the kernel's errno what it means for a link that was to be made.
func refused(err error, spec *Interface) error {
	// macvlan_common_newlink in drivers/net/macvlan.c
	if spec.Kind == KindMacvlan && errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("a macvlan in passthru mode must be alone on %s: %w", spec.Parent, err)
	}
	return explain(err, spec.Parent)
}

// explain adds to the kernel's errno what it means for a link on parent. The
// meanings are of drivers/net/macvlan.c, net/bridge/br_if.c and net/core/dev.c.
func explain(err error, parent string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s cannot be a macvlan parent and a bridge port at once: %w", parent, err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%s is down: %w", parent, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the kernel lacks this kind of link: %w", err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return fmt.Errorf("the next hop lies in no subnet of the interface: %w", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("the kernel refuses it (for an IPv6 address: IPv6 is disabled in the namespace): %w", err)
	}
	return err
}

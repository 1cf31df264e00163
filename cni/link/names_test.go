// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNamesFitTheKernelAndAreKnownAsOwn(t *testing.T) {
	taken := map[string]string{}
	for made, what := range map[string]string{
		BridgeName("eth1"):               "bridge of a short name",
		BridgeName("enp129s0f0np0"):      "bridge of a long name",
		BridgeName("enp129s0f0np1"):      "bridge of its neighbour",
		HostEndName("c1", "eth0"):        "veth end",
		HostEndName("c1", "eth1"):        "veth end of another interface",
		HostEndName("c2", "eth0"):        "veth end of another container",
		HostEndName("c1e", "th0"):        "veth end whose parts read alike",
		ShimName("management", "eth1"):   "shim",
		ShimName("management", "np-eth"): "shim on another parent",
	} {
		if len(made) > maxName || !Own(made) {
			t.Errorf("%s: %s has %d characters, own: %v", what, made, len(made), Own(made))
		}
		taken[made] = what
	}
	if len(taken) != 9 {
		t.Errorf("names clash: %v", taken)
	}
	if got := BridgeName("eth1"); got != "np-eth1" {
		t.Errorf("got %s", got)
	}
	for _, foreign := range []string{"eth0", "npvf", "nps0", "npv-not-a-hash0", "enp3s0", "npu0123456789ab"} {
		if Own(foreign) {
			t.Errorf("%s is taken for ours", foreign)
		}
	}
}

func TestExplainKeepsTheErrno(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EBUSY:       "eth1 cannot be a macvlan parent and a bridge port at once",
		unix.ENETDOWN:    "eth1 is down",
		unix.EOPNOTSUPP:  "the kernel lacks this kind of link",
		unix.ENETUNREACH: "the next hop lies in no subnet of the interface",
		unix.EACCES:      "IPv6 is disabled in the namespace",
		unix.EINVAL:      "invalid argument",
	} {
		got := explain(errno, "eth1")
		if !errors.Is(got, errno) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: got %v", errno, got)
		}
	}
}

func TestIsGone(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("x: %w", ErrNamespaceGone): true,
		netlink.LinkNotFoundError{}:           true,
		unix.ENODEV:                           true,
		unix.ESRCH:                            true,
		unix.EADDRNOTAVAIL:                    true,
		unix.ENOENT:                           true,
		unix.EPERM:                            false,
		unix.EBUSY:                            false,
	} {
		if IsGone(err) != want {
			t.Errorf("%v: got %v", err, !want)
		}
	}
	if IsGone(nil) {
		t.Error("success is taken for gone")
	}
}

func TestExistsDoubtsInFavourOfThePod(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "unmounted")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/proc/self/ns/net":                  true,
		plain:                                false,
		filepath.Join(dir, "removed"):        false,
		filepath.Join(dir, "no", "such-dir"): true,
	} {
		if Exists(path) != want {
			t.Errorf("%s: got %v", path, !want)
		}
	}
}

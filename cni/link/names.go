// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// maxName is IFNAMSIZ less the terminating NUL (linux/if.h).
const maxName = 15

// Prefixes of the links that netplane makes in the host's namespace.
const (
	bridgePrefix  = "np-"
	hostEndPrefix = "npv"
	shimPrefix    = "nps"
	// travelPrefix is of NICs on their way into a pod or back.
	travelPrefix = "npt"
)

const hashDigits = 12

// BridgeName names the bridge over a NIC: np-<nic>. A NIC whose name is too
// long for that (enp129s0f0np1) keeps its beginning, and a hash tells it from
// its neighbour.
func BridgeName(nic string) string {
	if len(bridgePrefix)+len(nic) <= maxName {
		return bridgePrefix + nic
	}
	return bridgePrefix + nic[:6] + "-" + digest(nic)[:5]
}

// linkGroup (IFLA_GROUP) marks the tagged devices that netplane makes: their
// names are those that an administrator would give them.
const linkGroup = 0x6e70

// TaggedName names the device of an 802.1Q tag on a NIC: <nic>.<tag>. Of a NIC
// whose name is too long for that the beginning stays, and a hash.
func TaggedName(nic string, tag int) string {
	suffix := "." + strconv.Itoa(tag)
	if room := maxName - len(suffix); len(nic) > room {
		nic = nic[:room-6] + "-" + digest(nic)[:5]
	}
	return nic + suffix
}

// HostEndName names the host's end of a pod's veth, the same for every try.
func HostEndName(containerID, ifname string) string {
	return hostEndPrefix + digest(containerID, ifname)[:hashDigits]
}

// ShimName names the macvlan by which the host reaches a Network's pods.
func ShimName(network, parent string) string {
	return shimPrefix + digest(network, parent)[:hashDigits]
}

// Own says whether a link of the host was made by netplane, or is a NIC on its
// way into a pod or back, by its name.
func Own(name string) bool {
	if strings.HasPrefix(name, bridgePrefix) {
		return true
	}
	if _, isOverlay := overlayOf(name); isOverlay {
		return true
	}
	for _, prefix := range []string{hostEndPrefix, shimPrefix, travelPrefix} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			_, err := hex.DecodeString(rest)
			return err == nil && len(rest) == hashDigits
		}
	}
	return false
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"encoding/hex"
	"strings"
)

// Prefixes of the two links of a segment.
const (
	overlayBridgePrefix = "npb"
	overlayDevicePrefix = "npx"
)

// OverlayBridge names the bridge of a Network of plugin vxlan, by the Network's
// UID: what is left of a former Network of the same name is another one.
func OverlayBridge(uid string) string {
	return overlayBridgePrefix + digest(uid)[:hashDigits]
}

// IsOverlayBridge says whether a link is one, by its name.
func IsOverlayBridge(name string) bool {
	bridge, ok := overlayOf(name)
	return ok && bridge == name
}

func overlayDeviceName(bridge string) string {
	return overlayDevicePrefix + strings.TrimPrefix(bridge, overlayBridgePrefix)
}

// overlayOf returns the bridge of the segment that a link is of.
func overlayOf(name string) (bridge string, ok bool) {
	rest, ok := strings.CutPrefix(name, overlayBridgePrefix)
	if !ok {
		rest, ok = strings.CutPrefix(name, overlayDevicePrefix)
	}
	if _, err := hex.DecodeString(rest); !ok || err != nil || len(rest) != hashDigits {
		return "", false
	}
	return overlayBridgePrefix + rest, true
}

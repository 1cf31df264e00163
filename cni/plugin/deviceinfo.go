// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/netplane/netplane/cni/wire"
)

// A plugin that hands a device to a pod writes into a file what device it is, if
// its configuration declares this capability and it is given the file's name
// (NPWG device information specification v1.1, section 4).
const (
	capabilityDeviceInfo = "CNIDeviceInfoFile"
	deviceInfoDir        = "/var/run/k8s.cni.cncf.io/devinfo/cni"
)

// maxDeviceInfo bounds what goes into the pod's network-status, in bytes.
const maxDeviceInfo = 16 << 10

// offerDeviceInfo names the file to each delegate that may write one.
func offerDeviceInfo(containerID string, all []wire.Delegate) error {
	offered := false
	for i := range all {
		d := &all[i]
		if !bytes.Contains(d.Config, []byte(`"`+capabilityDeviceInfo+`"`)) {
			continue
		}
		name, err := json.Marshal(filepath.Join(deviceInfoDir, containerID+"-"+d.IfName+"-device.json"))
		if err != nil {
			return fmt.Errorf("encoding the name of the device's file: %w", err)
		}
		d.RuntimeConfig = with(d.RuntimeConfig, map[string]json.RawMessage{capabilityDeviceInfo: name})
		offered = true
	}
	if !offered {
		return nil
	}
	if err := os.MkdirAll(deviceInfoDir, 0o755); err != nil { // #nosec G301 -- other programs read there
		return fmt.Errorf("making the folder of devices' files: %w", err)
	}
	return nil
}

// deviceFile is the name that offerDeviceInfo gave; empty if none.
func deviceFile(d *wire.Delegate) string {
	var name string
	if json.Unmarshal(d.RuntimeConfig[capabilityDeviceInfo], &name) != nil || filepath.Dir(name) != deviceInfoDir {
		return ""
	}
	return name
}

// deviceInfo is what the plugin has written; nil if nothing that can be passed
// on. It is for readers only: an ADD does not fail for it.
func deviceInfo(d *wire.Delegate) json.RawMessage {
	name := deviceFile(d)
	if name == "" {
		return nil
	}
	file, err := os.Open(name) // #nosec G304 -- in our folder
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	raw, err := io.ReadAll(io.LimitReader(file, maxDeviceInfo))
	var object map[string]json.RawMessage
	if err != nil || json.Unmarshal(raw, &object) != nil {
		return nil
	}
	return raw
}

// forgetDeviceInfo removes the file: no plugin does.
func forgetDeviceInfo(d *wire.Delegate) error {
	name := deviceFile(d)
	if name == "" {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the device's file: %w", err)
	}
	return nil
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/netplane/netplane/cni/wire"
)

// record is what the binary executes for one sandbox besides the default
// network, in this order. It is on disk before the first delegate runs, so that
// DEL finds the half of an ADD that was killed, too. libcni's cache has the
// results, but neither the order nor what never gave one.
type record struct {
	ContainerID string          `json:"containerID"`
	Args        [][2]string     `json:"args,omitempty"`
	Delegates   []wire.Delegate `json:"delegates"`
}

// runtime is what a delegate is called with. The namespace is that of the
// command under way: at DEL it may be gone.
func (r *record) runtime(d *wire.Delegate, netns string) *libcni.RuntimeConf {
	out := &libcni.RuntimeConf{
		ContainerID: r.ContainerID, NetNS: netns, IfName: d.IfName, Args: r.Args, CapabilityArgs: map[string]any{},
	}
	for capability, value := range d.RuntimeConfig {
		out.CapabilityArgs[capability] = value
	}
	return out
}

// records is the folder of the records, beside libcni's cache: on a disk that
// outlives a reboot, as what delegates keep does.
type records string

const recordSuffix = ".json"

func (c *command) records() records {
	dir := c.config.CacheDir
	if dir == "" {
		dir = libcni.CacheDir
	}
	return records(filepath.Join(dir, wire.PluginType))
}

// put writes a record whole or not at all, and on to the disk: an address that
// a delegate keeps in a file would never be given back otherwise.
func (d records) put(r *record) error {
	path, err := d.path(r.ContainerID)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding the record of delegates: %w", err)
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("making the folder of delegates' records: %w", err)
	}
	temp, err := os.CreateTemp(string(d), ".new-*")
	if err != nil {
		return fmt.Errorf("making the record of delegates: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	_, err = temp.Write(raw)
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return fmt.Errorf("writing the record of delegates: %w", err)
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return fmt.Errorf("naming the record of delegates: %w", err)
	}
	return nil
}

// get returns nil for a sandbox without delegates.
func (d records) get(containerID string) (*record, error) {
	path, err := d.path(containerID)
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of delegates: %w", err)
	}
	r := &record{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("reading the record of delegates %s: %w", path, err)
	}
	return r, nil
}

// list returns all records that can be read beside the error of those that
// cannot.
func (d records) list() ([]*record, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the records of delegates: %w", err)
	}
	var out []*record
	var failed []error
	for _, entry := range entries {
		id, isRecord := strings.CutSuffix(entry.Name(), recordSuffix)
		if !isRecord {
			continue // a writer's temporary file
		}
		r, err := d.get(id)
		if failed = append(failed, err); r != nil {
			out = append(out, r)
		}
	}
	return out, errors.Join(failed...)
}

func (d records) remove(containerID string) error {
	path, err := d.path(containerID)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of delegates: %w", err)
	}
	return nil
}

func (d records) path(containerID string) (string, error) {
	if containerID == "" || strings.ContainsAny(containerID, "/\x00") {
		return "", fmt.Errorf("container ID %q cannot name a file", containerID)
	}
	return filepath.Join(string(d), containerID+recordSuffix), nil
}

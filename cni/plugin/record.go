// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

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

func (c *command) records() records { return records(filepath.Join(c.cacheDir(), wire.PluginType)) }

func (c *command) cacheDir() string { return cmp.Or(c.config.CacheDir, libcni.CacheDir) }

// put writes a record whole or not at all, and on to the disk: an address that
// a delegate keeps in a file would never be given back otherwise. The file stays
// open and locked until letGo, or until the process ends: so GC in another one
// sees that the ADD is under way, however long it takes.
func (d records) put(r *record) (letGo func(), err error) {
	path, err := d.path(r.ContainerID)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding the record of delegates: %w", err)
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of delegates' records: %w", err)
	}
	d.tidy()
	temp, err := os.CreateTemp(string(d), partialPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("making the record of delegates: %w", err)
	}
	_, err = temp.Write(raw)
	if err = errors.Join(err, unix.Flock(int(temp.Fd()), unix.LOCK_EX|unix.LOCK_NB), temp.Sync()); err != nil {
		err = fmt.Errorf("writing the record of delegates: %w", err)
	} else if err = os.Rename(temp.Name(), path); err != nil {
		err = fmt.Errorf("naming the record of delegates: %w", err)
	}
	if err != nil {
		return nil, errors.Join(err, temp.Close(), os.Remove(temp.Name()))
	}
	return func() { _ = temp.Close() }, nil
}

// partialPrefix is of files that are being written.
const partialPrefix = ".new-"

// tidy removes what writers have left that were killed.
func (d records) tidy() {
	left, _ := filepath.Glob(filepath.Join(string(d), partialPrefix+"*"))
	for _, path := range left {
		if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > gcGrace {
			_ = os.Remove(path) // in nobody's way if it stays
		}
	}
}

// underWay says that the ADD of a record is not done, or was not when the runtime
// made its list of what is valid.
func (d records) underWay(containerID string, now time.Time) bool {
	path, err := d.path(containerID)
	if err != nil {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false // DEL has removed it
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	return err != nil || now.Sub(info.ModTime()) < gcGrace || unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
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

// list returns all records that can be read, and beside the error of those that
// cannot the containers that they are of.
func (d records) list() (out []*record, unreadable []string, err error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing the records of delegates: %w", err)
	}
	var failed []error
	for _, entry := range entries {
		id, isRecord := strings.CutSuffix(entry.Name(), recordSuffix)
		if !isRecord {
			continue // a writer's temporary file
		}
		r, err := d.get(id)
		switch {
		case err != nil:
			unreadable, failed = append(unreadable, id), append(failed, err)
		case r != nil: // else DEL has removed it
			out = append(out, r)
		}
	}
	return out, unreadable, errors.Join(failed...)
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

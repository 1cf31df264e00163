// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Spool is the folder of DELs that came while the agent was down. The binary
// writes it, the agent replays and empties it before it serves.
type Spool string

const spoolSuffix = ".json"

// SandboxFolder is where the agent keeps what it knows of sandboxes, beside the
// journal of addresses: a file for each, named by RecordName.
const SandboxFolder = "sandboxes"

// RecordName is the name of a sandbox's file.
func RecordName(containerID string) string { return containerID + spoolSuffix }

// Journaled tells whether an agent may have given a sandbox something: before
// anything else it writes the container ID into the journal of addresses at
// that path, and a record, which interfaces have too whose addresses are not the
// agent's. What cannot be read may hold it. A DEL of any other sandbox has
// nothing to undo, and need not be spooled: without that, each failed attempt
// of each pod that waits for an agent would leave a file.
func Journaled(journal, containerID string) bool {
	raw, err := os.ReadFile(journal)
	if err == nil && bytes.Contains(raw, []byte(containerID)) || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true
	} // else it has no address, or no agent has run since the node started
	_, err = os.Lstat(filepath.Join(filepath.Dir(journal), SandboxFolder, RecordName(containerID)))
	return !errors.Is(err, fs.ErrNotExist)
}

// Put records a DEL. The file appears whole or not at all, and a second DEL of
// the same sandbox replaces the first.
func (s Spool) Put(sandbox Sandbox) error {
	if sandbox.ContainerID == "" || strings.ContainsAny(sandbox.ContainerID, "/\x00") {
		return fmt.Errorf("container ID %q cannot be spooled", sandbox.ContainerID)
	}
	if err := os.MkdirAll(string(s), 0o700); err != nil {
		return fmt.Errorf("making spool folder: %w", err)
	}
	raw, err := json.Marshal(sandbox)
	if err != nil {
		return fmt.Errorf("encoding spool entry: %w", err)
	}
	temp, err := os.CreateTemp(string(s), partialPrefix+"*")
	if err != nil {
		return fmt.Errorf("making spool entry: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	_, err = temp.Write(raw)
	if err = errors.Join(err, temp.Close()); err != nil {
		return fmt.Errorf("writing spool entry: %w", err)
	}
	if err := os.Rename(temp.Name(), s.path(sandbox)); err != nil {
		return fmt.Errorf("naming spool entry: %w", err)
	}
	return nil
}

const (
	partialPrefix = ".new-"
	// partialGrace spares the files of writers that are at work.
	partialGrace = time.Minute
)

// Tidy removes the files that writers have left which were killed.
func (s Spool) Tidy() error {
	left, err := filepath.Glob(filepath.Join(string(s), partialPrefix+"*"))
	failed := []error{err}
	for _, path := range left {
		if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()) < partialGrace {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, fmt.Errorf("removing half a spool entry: %w", err))
		}
	}
	return errors.Join(failed...)
}

// asideSuffix is of what is no DEL, and kept for whoever wants to see why.
const asideSuffix = ".unreadable"

// PutAside has List pass over a file from now on.
func (s Spool) PutAside(path string) error {
	if err := os.Rename(path, path+asideSuffix); err != nil {
		return fmt.Errorf("putting a file of the spool aside: %w", err)
	}
	return nil
}

// Aside counts the files that were put aside.
func (s Spool) Aside() int {
	all, _ := filepath.Glob(filepath.Join(string(s), "*"+asideSuffix))
	return len(all)
}

// List returns the recorded DELs, and the paths of files that are none, or cannot
// be read. A missing folder holds nothing.
func (s Spool) List() (dels []Sandbox, unreadable []string, err error) {
	entries, err := os.ReadDir(string(s))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading spool folder: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), spoolSuffix) {
			continue // a writer's temporary file
		}
		path := filepath.Join(string(s), entry.Name())
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was carried out meanwhile
		}
		var sandbox Sandbox
		if err != nil || json.Unmarshal(raw, &sandbox) != nil || s.path(sandbox) != path {
			unreadable = append(unreadable, path)
			continue
		}
		dels = append(dels, sandbox)
	}
	return dels, unreadable, nil
}

// Remove forgets a DEL that was replayed.
func (s Spool) Remove(sandbox Sandbox) error {
	if err := os.Remove(s.path(sandbox)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing spool entry: %w", err)
	}
	return nil
}

func (s Spool) path(sandbox Sandbox) string {
	return filepath.Join(string(s), sandbox.ContainerID+spoolSuffix)
}

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
)

// Spool is the folder of DELs that came while the agent was down. The binary
// writes it, the agent replays and empties it before it serves.
type Spool string

const spoolSuffix = ".json"

// Journaled tells whether an agent may have given a sandbox something: before
// anything else it writes the container ID into the journal of addresses at
// that path. What cannot be read may hold it. A DEL of any other sandbox has
// nothing to undo, and need not be spooled: without that, each failed attempt
// of each pod that waits for an agent would leave a file.
func Journaled(journal, containerID string) bool {
	raw, err := os.ReadFile(journal)
	if errors.Is(err, fs.ErrNotExist) {
		return false // no agent has run since the node started
	}
	return err != nil || bytes.Contains(raw, []byte(containerID))
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
	temp, err := os.CreateTemp(string(s), ".new-*")
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

// List returns the recorded DELs, and the paths of files that are none. A
// missing folder holds nothing.
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
		if err != nil {
			return nil, nil, fmt.Errorf("reading spool entry: %w", err)
		}
		var sandbox Sandbox
		if json.Unmarshal(raw, &sandbox) != nil || s.path(sandbox) != path {
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

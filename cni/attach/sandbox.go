// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// State says how far the ADD of a sandbox came.
type State string

// The states. A record is written before the first link is made, so that an
// agent that dies in between finds what to undo.
const (
	StateAttaching State = "attaching"
	StateAttached  State = "attached"
	// StateUndone: of an ADD that failed only what other plugins may have made is
	// left, with its addresses, for DEL.
	StateUndone State = "undone"
)

// Sandbox is what one pod sandbox was given: all that DEL, CHECK and a restart
// need to know.
type Sandbox struct {
	wire.Sandbox
	State      State            `json:"state"`
	Since      time.Time        `json:"since"`
	Interfaces []link.Interface `json:"interfaces"`
	// Delegates are the names of the interfaces that the CNI binary has other
	// plugins make and remove; it keeps a record of its own for that.
	Delegates []string `json:"delegates,omitempty"`
	// Asked are what Interfaces and Delegates were made for; absent in the records
	// of earlier versions.
	Asked []podnetworks.Request `json:"asked,omitempty"`
	// Going are those that come or go by hot plug.
	Going []Going `json:"going,omitempty"`
	// Plugged are the names of those that came or went by hot plug: the runtime's
	// result of the ADD is no word on them.
	Plugged []string `json:"plugged,omitempty"`
	// Path is set if a Network is on eth0.
	Path *NodePath `json:"path,omitempty"`
	// Attachments are what network-status tells, the default network's included.
	Attachments []podnetworks.Attachment `json:"attachments"`
}

// NodePath is the host's way to a pod whose eth0 is on a Network.
type NodePath struct {
	Network string         `json:"network"`
	Subnets []netip.Prefix `json:"subnets"`
	// Local are addresses of pods here that have no other router than the host:
	// the blocks of those that have theirs from one.
	Local []netip.Prefix `json:"local,omitempty"`
	link.Path
}

// Pod names the pod of the sandbox.
func (s *Sandbox) Pod() types.NamespacedName {
	return types.NamespacedName{Namespace: s.PodNamespace, Name: s.PodName}
}

// told says whether the record tells what the interfaces were made for.
func (s *Sandbox) told() bool { return len(s.Asked) == len(s.Interfaces)+len(s.Delegates) }

// uses counts the interfaces by network, those with them whose addresses are
// reserved yet or still. It is nil if the record does not tell.
func (s *Sandbox) uses() []podnetworks.Use {
	if !s.told() {
		return nil
	}
	all := slices.Clone(s.Asked)
	for i := range s.Going {
		all = append(all, s.Going[i].Asked)
	}
	return podnetworks.Uses(slices.DeleteFunc(all, func(r podnetworks.Request) bool { return !ofNetwork(&r) }))
}

// Sandboxes is the folder of records, one file per container ID.
type Sandboxes string

// Endings of the files: of a record, and of one that is being written.
const (
	recordSuffix  = ".json"
	partialSuffix = recordSuffix + ".new"
)

// Save writes a record whole or not at all.
func (d Sandboxes) Save(s *Sandbox) error {
	path, err := d.path(s.ContainerID)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("making the folder of sandboxes: %w", err)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding sandbox record: %w", err)
	}
	temp := strings.TrimSuffix(path, recordSuffix) + partialSuffix
	if err := os.WriteFile(temp, raw, 0o600); err != nil {
		return fmt.Errorf("writing sandbox record: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("naming sandbox record: %w", err)
	}
	return nil
}

// Load reads all records. A file that is none, or cannot be read, is reported beside
// the others, by the container that it is named after: one bad file must not keep
// the agent from serving. It is called before any Save, and so removes what an agent
// that was killed had only half written.
func (d Sandboxes) Load() (records []Sandbox, unreadable map[string]Unreadable, err error) {
	unreadable = map[string]Unreadable{}
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading the folder of sandboxes: %w", err)
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), partialSuffix) {
			_ = os.Remove(filepath.Join(string(d), entry.Name())) // the next one tries again
			continue
		}
		id, isRecord := strings.CutSuffix(entry.Name(), recordSuffix)
		if !isRecord {
			continue
		}
		var record Sandbox
		raw, err := os.ReadFile(filepath.Join(string(d), entry.Name()))
		if err == nil {
			err = json.Unmarshal(raw, &record)
		}
		if err == nil && record.ContainerID != id {
			err = fmt.Errorf("it is of container %q", record.ContainerID)
		}
		if err != nil {
			unreadable[id] = Unreadable{NetNS: netNSIn(raw), Err: fmt.Errorf("reading sandbox record %s: %w", entry.Name(), err)}
			continue
		}
		records = append(records, record)
	}
	return records, unreadable, nil
}

// Unreadable is a record that could not be read.
type Unreadable struct {
	// NetNS is the namespace of its sandbox; empty if not even that is known.
	NetNS string
	Err   error
}

// netNSIn finds the namespace in a record of which another member is not what it
// should be: of a later version, say.
func netNSIn(raw []byte) string {
	var part struct {
		NetNS string `json:"netns"`
	}
	if json.Unmarshal(raw, &part) != nil {
		return ""
	}
	return part.NetNS
}

// exist says that an agent has kept records here since the node started.
func (d Sandboxes) exist() bool {
	_, err := os.Stat(string(d))
	return err == nil
}

// Remove deletes a record; one that is gone is no error.
func (d Sandboxes) Remove(containerID string) error {
	path, err := d.path(containerID)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing sandbox record: %w", err)
	}
	return nil
}

func (d Sandboxes) path(containerID string) (string, error) {
	if containerID == "" || strings.ContainsAny(containerID, "/\x00") {
		return "", fmt.Errorf("container ID %q cannot name a file", containerID)
	}
	return filepath.Join(string(d), containerID+recordSuffix), nil
}

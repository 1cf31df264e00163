// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// Operations of a record.
const (
	opLease = "lease"
	opFree  = "free"
	opCool  = "cool" // of a rewritten journal: the releases that are left out
)

// compactAfter is how many releases a journal holds at least before it is
// rewritten in the path of a pod; the collector rewrites it sooner.
const compactAfter = 64

// record is one line of the journal. All leases of a record come to life, or
// end, together.
type record struct {
	Op     string    `json:"op"`
	Leases []Lease   `json:"leases"`
	At     time.Time `json:"at,omitzero"` // of opFree
	Freed  []freed   `json:"freed,omitempty"`
}

// journal is an append-only file of records, one per line: the CRC-32 (IEEE) of
// the JSON text in eight hexadecimal digits, a blank, the JSON text. It lies in
// tmpfs and is never synced: it has to survive the agent, not the kernel, whose
// end is the end of every pod's namespace as well.
type journal struct {
	path  string
	file  *os.File
	lock  *os.File
	size  int64  // of the whole lines written
	frees int    // records that made others garbage
	piece int64  // of a line that the file ends in, behind size
	line  []byte // reused by append
}

// openJournal locks the journal, so that two agents never serve one node, and
// reads what it holds. The file must be rewritten or resumed before the first
// append.
func openJournal(path string) (*journal, *replayed, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, nil, fmt.Errorf("making the journal's folder: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the journal's lock: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("locking journal %s: does another agent run on this node? %w", path, err), lock.Close())
	}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errors.Join(fmt.Errorf("reading the journal: %w", err), lock.Close())
	}
	return &journal{path: path, lock: lock, size: int64(bytes.LastIndexByte(data, '\n') + 1)}, readRecords(data), nil
}

// resume goes on behind the whole lines of the file, for which there need be no
// room, and has the next release rewrite it.
func (j *journal) resume() error {
	file, err := os.OpenFile(j.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("opening the journal: %w", err)
	}
	if err := file.Truncate(j.size); err != nil {
		return errors.Join(fmt.Errorf("cutting a piece of a line off the journal: %w", err), file.Close())
	}
	j.file, j.frees = file, math.MaxInt/2
	return nil
}

func (j *journal) close() error {
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	return errors.Join(err, j.lock.Close())
}

// append writes one record. After an error the file holds what it held before.
func (j *journal) append(r record) error {
	j.line = j.line[:0]
	if j.piece > 0 {
		// A line of its own keeps the piece before it from spoiling this record.
		j.line = append(j.line, '\n')
	}
	line, err := appendLine(j.line, &r)
	if err != nil {
		return err
	}
	j.line = line
	if n, err := j.file.Write(line); err != nil {
		// Only what was written in part can hurt, and only until it is cut off.
		j.piece += int64(n)
		if j.piece > 0 && j.file.Truncate(j.size) == nil {
			j.piece = 0
		}
		return fmt.Errorf("writing the journal: %w", err)
	}
	// A piece that could not be cut off is part of the file for good: without it
	// the next failure would cut into this record.
	j.size += j.piece + int64(len(line))
	j.piece = 0
	if r.Op == opFree {
		j.frees++
	}
	return nil
}

// garbage tells whether rewriting the file for so many living leases pays.
func (j *journal) garbage(live int) bool { return j.frees > max(compactAfter, live) }

// rewrite replaces the file by one that holds only these leases and addresses
// that cool down, by rename: a reader finds the old file or the new one. After
// an error the old one stands.
func (j *journal) rewrite(leases []Lease, cool []freed) (err error) {
	if len(leases)+len(cool) == 0 && j.file != nil && j.file.Truncate(0) == nil {
		j.size, j.frees, j.piece = 0, 0, 0
		return nil
	}
	next, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("compacting the journal: %w", err)
	}
	done := false
	defer func() {
		if !done {
			err = errors.Join(err, next.Close(), os.Remove(next.Name()))
		}
	}()
	text, err := compacted(leases, cool)
	if err != nil {
		return err
	}
	if _, err := io.Copy(next, bytes.NewReader(text)); err != nil {
		return fmt.Errorf("compacting the journal: %w", err)
	}
	if err := os.Rename(next.Name(), j.path); err != nil {
		return fmt.Errorf("compacting the journal: %w", err)
	}
	done = true
	if j.file != nil {
		_ = j.file.Close() // nothing is buffered, and nobody reads the old file again
	}
	j.file, j.size, j.frees, j.piece = next, int64(len(text)), 0, 0
	return nil
}

// compacted is the text of a journal without history.
func compacted(leases []Lease, cool []freed) (text []byte, err error) {
	if len(cool) > 0 {
		if text, err = appendLine(text, &record{Op: opCool, Freed: cool}); err != nil {
			return nil, err
		}
	}
	for i := range leases {
		if text, err = appendLine(text, &record{Op: opLease, Leases: leases[i : i+1]}); err != nil {
			return nil, err
		}
	}
	return text, nil
}

func decode(line []byte) (record, error) {
	var r record
	sum, text, found := bytes.Cut(line, []byte{' '})
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if !found || err != nil || uint32(want) != crc32.ChecksumIEEE(text) {
		return r, errors.New("checksum does not match")
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("decoding a journal record: %w", err)
	}
	for i := range r.Leases {
		if err := r.Leases[i].valid(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// replayed is what a journal says.
type replayed struct {
	byOwner map[ownerKey]Lease
	byAddr  map[addrKey]ownerKey
	cooling cooling
	// damaged counts lines that could not be read though whole lines follow
	// them. A piece of a line at the end is no damage: the agent died before it
	// could answer for that record.
	damaged int
}

// readRecords applies every readable line in order. A later record wins: an
// address is handed out again only after it was freed.
func readRecords(data []byte) *replayed {
	out := &replayed{byOwner: map[ownerKey]Lease{}, byAddr: map[addrKey]ownerKey{}, cooling: cooling{}}
	bad := 0
	for len(data) > 0 {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		data = rest
		if len(line) == 0 {
			continue
		}
		r, err := decode(line)
		if !whole || err != nil {
			bad++
			continue
		}
		out.damaged += bad
		bad = 0
		out.apply(r)
	}
	return out
}

func (s *replayed) apply(r record) {
	for _, f := range r.Freed {
		s.cooling[addrKey{f.Network, f.Address}] = f.At
	}
	for _, lease := range r.Leases {
		switch r.Op {
		case opLease:
			s.drop(s.byAddr[lease.addr()])
			s.drop(lease.key())
			s.byOwner[lease.key()] = lease
			s.byAddr[lease.addr()] = lease.key()
		case opFree:
			// A release matches network, address, container, interface, pod and time.
			if old := s.byOwner[lease.key()]; sameLease(&old, &lease) && old.PodUID == lease.PodUID {
				s.drop(lease.key())
				s.cooling.add([]Lease{lease}, r.At)
			}
		}
	}
}

func (s *replayed) drop(owner ownerKey) {
	if old, ok := s.byOwner[owner]; ok {
		delete(s.byAddr, old.addr())
		delete(s.byOwner, owner)
	}
}

func (s *replayed) leases() []Lease {
	out := make([]Lease, 0, len(s.byOwner))
	for _, lease := range s.byOwner {
		out = append(out, lease)
	}
	sortLeases(out)
	return out
}

func sortLeases(leases []Lease) {
	slices.SortFunc(leases, func(a, b Lease) int {
		return cmp.Or(cmp.Compare(a.Network, b.Network), a.Address.Compare(b.Address))
	})
}

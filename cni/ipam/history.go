// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

const (
	// maxJump is the largest step forward that resource versions make without
	// help. Restoring etcd with --bump-revision adds a thousand million, so that
	// clients do not see versions go back.
	maxJump = 100_000_000
	// saveEvery is the time between two writes of the version that was seen last.
	saveEvery = time.Second
)

// history notices that the API server's state went back to an earlier one: etcd
// was restored from a backup. Other nodes may lack blocks then in which their
// pods live, and need time to assert them before anybody claims what looks
// unclaimed. Resource versions of one kind only grow (KEP-5504), so that what
// goes back has been rewound. A false alarm costs a pause, no more.
type history struct {
	clock   clock.PassiveClock
	pause   time.Duration
	logger  klog.Logger
	metrics *Metrics
	path    string // of the file that outlives the agent; empty for none
	alarm   func() // called after a rollback was noticed

	mu    sync.Mutex
	seen  map[stream]string // the newest version of each
	epoch int               // grows with each pause
	count int               // grows with each sign of a rollback
	until time.Time         // end of the pause
	saved memory
	next  time.Time // when to save again
}

// stream is where versions of one kind come from. They only grow in each; one
// may be behind another.
type stream struct {
	kind string
	from origin
}

// origin is a way on which versions come.
type origin int

const (
	fromCache  origin = iota // how far the agent's own cache has come
	fromServer               // what the API server answered when it was asked
	fromWrites               // the versions that own writes got; their replies may come in any order
)

// memory is what of a history outlives the agent.
type memory struct {
	Versions    map[string]string `json:"resourceVersions,omitempty"` // the newest of each kind
	PausedUntil time.Time         `json:"pausedUntil,omitzero"`
}

// blocksKind is the kind that the agent itself writes with optimism.
const blocksKind = "IPBlock"

// remember reads what the former agent of this node knew. Whatever cannot be
// read is unknown.
func (h *history) remember() {
	if h.path == "" {
		return
	}
	data, err := os.ReadFile(h.path)
	if err == nil {
		err = json.Unmarshal(data, &h.saved)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			h.logger.Info("What the former agent knew of the API server's state cannot be read", "path", h.path, "err", err)
		}
		return
	}
	for kind, version := range h.saved.Versions {
		h.seen[stream{kind, fromCache}] = version
		h.seen[stream{kind, fromServer}] = version
	}
	if now := h.clock.Now(); h.saved.PausedUntil.After(now) {
		h.until, h.epoch = now.Add(min(h.pause, h.saved.PausedUntil.Sub(now))), 1
		h.count = 1
	}
}

// see notes how far a stream of versions has come.
func (h *history) see(s stream, version string) {
	h.mu.Lock()
	before := h.seen[s]
	if version == "" || version == "0" || version == before {
		h.mu.Unlock()
		return
	}
	h.seen[s] = version
	back := older(version, before)
	if back {
		h.forget(s.kind, version)
	}
	h.mu.Unlock()
	switch {
	case back:
		h.wentBack("versions went back", "kind", s.kind, "from", before, "to", version)
	case jumped(before, version):
		h.wentBack("versions jumped ahead", "kind", s.kind, "from", before, "to", version)
	}
}

// floor is what the version of an IPBlock that is written from now on exceeds.
func (h *history) floor() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	newest := ""
	for _, from := range []origin{fromCache, fromServer, fromWrites} {
		newest = newer(newest, h.seen[stream{blocksKind, from}])
	}
	return newest
}

// wrote notes the version that a write of an IPBlock got; floor is from before it.
func (h *history) wrote(version, floor string) {
	back := older(version, floor)
	h.mu.Lock()
	written := stream{blocksKind, fromWrites}
	if last := h.seen[written]; back || last == "" || older(last, version) {
		h.seen[written] = version
	}
	if back {
		h.forget(blocksKind, version)
	}
	h.mu.Unlock()
	if back {
		h.wentBack("a write got a version that is not new", "version", version, "seen", floor)
	}
}

// forget drops what a rollback to a version has undone: that it was noticed on
// one way is enough, for the next agent too. The caller has the lock.
func (h *history) forget(kind, version string) {
	for _, from := range []origin{fromCache, fromServer, fromWrites} {
		if older(version, h.seen[stream{kind, from}]) {
			delete(h.seen, stream{kind, from})
		}
	}
}

// wentBack begins a pause, or makes the one under way longer.
func (h *history) wentBack(what string, keysAndValues ...any) {
	h.mu.Lock()
	now := h.clock.Now()
	fresh := !now.Before(h.until)
	if fresh {
		h.epoch++
	}
	h.count++
	h.until = now.Add(h.pause)
	h.next = time.Time{}
	h.mu.Unlock()
	h.metrics.rollbacks.Inc()
	if fresh {
		h.logger.Error(nil, "The API server's state seems to have gone back to an earlier one: new blocks wait until every node has asserted its own",
			append([]any{"evidence", what, "pause", h.pause}, keysAndValues...)...)
	}
	h.save()
	if h.alarm != nil {
		h.alarm()
	}
}

// rest is what is left of the pause.
func (h *history) rest(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(0, h.until.Sub(now))
}

// signs counts the pauses, and all signs of a rollback.
func (h *history) signs() (epoch, count int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.epoch, h.count
}

// save writes what the next agent has to know, from time to time, by rename.
func (h *history) save() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	if h.path == "" || now.Before(h.next) {
		return
	}
	next := memory{Versions: h.newest(), PausedUntil: h.until}
	if next.PausedUntil.Equal(h.saved.PausedUntil) && maps.Equal(next.Versions, h.saved.Versions) {
		return
	}
	h.next = now.Add(saveEvery)
	if err := replaceFile(h.path, next); err != nil {
		h.logger.Error(err, "The next agent of this node will not know what this one saw of the API server's state", "path", h.path)
		return
	}
	h.saved = next
}

// saveNow is save for what no event may bring again before the agent ends.
func (h *history) saveNow() {
	h.mu.Lock()
	h.next = time.Time{}
	h.mu.Unlock()
	h.save()
}

// newest is the newest version of each kind. The caller has the lock.
func (h *history) newest() map[string]string {
	out := map[string]string{}
	for s, version := range h.seen {
		out[s.kind] = newer(out[s.kind], version)
	}
	return out
}

func replaceFile(path string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", path, err)
	}
	// The journal's folder, which the first start of an agent has not made yet.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the folder of %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// older tells that version a came before b; of what is no number it is false.
func older(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order < 0
}

// newer is the newer of two versions; a, if they do not compare.
func newer(a, b string) string {
	if a == "" || older(a, b) {
		return b
	}
	return a
}

func jumped(from, to string) bool {
	a, errA := strconv.ParseUint(from, 10, 64)
	b, errB := strconv.ParseUint(to, 10, 64)
	return errA == nil && errB == nil && b > a && b-a > maxJump
}

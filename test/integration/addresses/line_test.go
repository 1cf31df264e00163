// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
)

// errLost is what a caller sees whose reply, or request, was lost.
var errLost = errors.New("injected: no reply came in time")

// gate lets pass, or not.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed while open
	shut   bool
}

func newGate() *gate {
	g := &gate{opened: make(chan struct{})}
	close(g.opened)
	return g
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case shut && !g.shut:
		g.opened = make(chan struct{})
	case !shut && g.shut:
		close(g.opened)
	}
	g.shut = shut
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

func (g *gate) open() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// line is one process's connection to the API server, with its faults. Unlike
// a wrapper of the client it also has the informers' lists and watches.
type line struct {
	outage *gate         // shared by all: shut while no API server answers
	frozen *gate         // shared by all: shut while whoever calls waits
	events *gate         // shut while watch events are held back
	parted *gate         // shut while nothing gets through, or back
	blocks *gate         // shut while nothing about IPBlocks gets through
	dead   chan struct{} // closed when the process is dead
	die    func()        // ends the process

	mu       sync.Mutex
	replies  int // so many replies to writes of blocks get lost
	requests int // so many writes of blocks get lost
	onCreate func(sent bool) bool
	bodies   map[*watchBody]bool
}

func newLine(outage, frozen *gate) *line {
	return &line{outage: outage, frozen: frozen, events: newGate(), parted: newGate(), blocks: newGate(), dead: make(chan struct{}), bodies: map[*watchBody]bool{}}
}

// lose arms the loss of replies, or of requests.
func (l *line) lose(replies, requests int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replies += replies
	l.requests += requests
}

// kill is the process's death, which happens once.
func (l *line) kill() {
	close(l.dead)
	l.hangUp()
}

// hangUp ends the running watches.
func (l *line) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for body := range l.bodies {
		body.hangUp()
	}
	clear(l.bodies)
}

// calm takes all faults away.
func (l *line) calm() {
	l.mu.Lock()
	l.replies, l.requests, l.onCreate = 0, 0, nil
	l.mu.Unlock()
	l.parted.set(false)
	l.events.set(false)
}

// fate is what becomes of one write.
func (l *line) fate(write, create bool) (loseRequest, loseReply bool, crash func(sent bool) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if create && l.onCreate != nil {
		crash, l.onCreate = l.onCreate, nil
		return false, false, crash
	}
	switch {
	case write && l.requests > 0:
		l.requests--
		return true, false, nil
	case write && l.replies > 0:
		l.replies--
		return false, true, nil
	}
	return false, false, nil
}

// pass waits as long as nothing gets through: packets are lost, nobody refuses.
func (l *line) pass(ctx context.Context, path string) error {
	gates := []*gate{l.frozen, l.parted}
	if strings.Contains(path, "/ipblocks") {
		gates = append(gates, l.blocks)
	}
	for _, g := range gates {
		select {
		case <-g.open():
		case <-ctx.Done():
			return ctx.Err()
		case <-l.dead:
		}
	}
	return l.refusal()
}

func (l *line) refusal() error {
	select {
	case <-l.dead:
		return errDead
	default:
	}
	if l.outage.isShut() {
		return syscall.ECONNREFUSED
	}
	return nil
}

// wrap is for rest.Config.Wrap.
func (l *line) wrap(next http.RoundTripper) http.RoundTripper { return &tripper{l, next} }

type tripper struct {
	line *line
	next http.RoundTripper
}

// RoundTrip does the call, or not, and answers, or not.
func (t *tripper) RoundTrip(request *http.Request) (*http.Response, error) {
	l := t.line
	if err := l.pass(request.Context(), request.URL.Path); err != nil {
		return nil, err
	}
	write := request.Method != http.MethodGet && strings.Contains(request.URL.Path, "/ipblocks")
	create := request.Method == http.MethodPost && strings.HasSuffix(request.URL.Path, "/ipblocks")
	loseRequest, loseReply, crash := l.fate(write, create)
	if loseRequest || crash != nil && crash(false) {
		return nil, errLost
	}
	response, err := t.next.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if l.refusal() != nil || loseReply || crash != nil && crash(true) {
		_ = response.Body.Close()
		return nil, errLost
	}
	if request.URL.Query().Get("watch") == "true" && response.StatusCode == http.StatusOK {
		return l.watch(response)
	}
	return response, nil
}

func (l *line) watch(response *http.Response) (*http.Response, error) {
	body := &watchBody{ReadCloser: response.Body, line: l, ended: make(chan struct{})}
	l.mu.Lock()
	l.bodies[body] = true
	l.mu.Unlock()
	if err := l.refusal(); err != nil {
		_ = body.Close()
		return nil, err
	}
	response.Body = body
	return response, nil
}

// watchBody is the stream of a watch.
type watchBody struct {
	io.ReadCloser
	line  *line
	once  sync.Once
	ended chan struct{}
}

// Read holds back what has arrived while the line's events are held.
func (b *watchBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	for _, g := range []*gate{b.line.events, b.line.parted} {
		select {
		case <-g.open():
		case <-b.ended:
		}
	}
	select {
	case <-b.ended:
		return 0, syscall.ECONNRESET
	default:
		return n, err
	}
}

func (b *watchBody) hangUp() {
	b.once.Do(func() {
		close(b.ended)
		_ = b.ReadCloser.Close()
	})
}

// Close ends the watch.
func (b *watchBody) Close() error {
	b.hangUp()
	b.line.mu.Lock()
	defer b.line.mu.Unlock()
	delete(b.line.bodies, b)
	return nil
}

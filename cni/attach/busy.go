// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"sync"
)

// keyedMutex lets one request at a time work on a sandbox.
type keyedMutex struct {
	mu      sync.Mutex
	holders map[string]*holder
}

type holder struct {
	turn  chan struct{}
	users int
	// yield ends the work of a holder that gives way to others; nil for one that
	// does not.
	yield context.CancelFunc
}

// lock waits for the key and returns what unlocks it.
func (k *keyedMutex) lock(ctx context.Context, key string) (func(), error) {
	k.mu.Lock()
	h, ok := k.holders[key]
	if !ok {
		h = &holder{turn: make(chan struct{}, 1)}
		k.holders[key] = h
	}
	h.users++
	if h.yield != nil {
		h.yield()
	}
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(k.holders, key)
		}
	}
	select {
	case h.turn <- struct{}{}:
		return func() {
			k.mu.Lock()
			h.yield = nil
			k.mu.Unlock()
			<-h.turn
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for another request of the same sandbox: %w", ctx.Err())
	}
}

// lockYielding is lock for work that can wait: the context that it returns ends
// as soon as somebody else wants the key.
func (k *keyedMutex) lockYielding(ctx context.Context, key string) (context.Context, func(), error) {
	unlock, err := k.lock(ctx, key)
	if err != nil {
		return ctx, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.holders[key]; h.users > 1 {
		cancel()
	} else {
		h.yield = cancel
	}
	return ctx, func() { unlock(); cancel() }, nil
}

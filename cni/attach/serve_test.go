// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/cni/wire"
)

// serving starts the server of a world, after what comes before, and ends it
// with the test.
func serving(t *testing.T, before ...func(*world)) *world {
	t.Helper()
	w := newWorld(t)
	// A unix socket's path has at most 107 bytes, which t.TempDir may exceed.
	state, err := os.MkdirTemp("", "np")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	w.open(t, state)
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, do := range before {
		do(w)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the socket is there", func() bool { _, err := os.Stat(w.config.Socket()); return err == nil })
	_ = w.links.String() // by its lock what the server did before comes before what the test does
	return w
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func (w *world) dial(t *testing.T) *wire.Client {
	t.Helper()
	var client *wire.Client
	eventually(t, "the server takes connections", func() (ok bool) {
		var err error
		client, err = wire.Dial(t.Context(), w.config.Socket())
		return err == nil
	})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func (w *world) leased() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.leases)
}

func TestDelThatIsSpooledBeforeTheSocketStandsIsCarriedOut(t *testing.T) {
	w := serving(t, func(w *world) {
		if err := w.add(t.Context(), "c1", "data"); err != nil {
			t.Fatal(err)
		}
		if err := w.config.Spool().Put(sandboxOf("c1")); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, "the address is free", func() bool { return w.leased() == 0 })
	eventually(t, "the spool is empty", func() bool {
		dels, _, err := w.config.Spool().List()
		return err == nil && len(dels) == 0
	})
}

func TestSocketIsRootsOnly(t *testing.T) {
	w := serving(t)
	w.dial(t)
	info, err := os.Stat(w.config.Socket())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
}

// leavesNothing: the caller of a request that adds interfaces goes before net1 is made.
func (w *world) leavesNothing(t *testing.T, client *wire.Client, request wire.Request) {
	t.Helper()
	reached, goOn := make(chan struct{}), make(chan struct{})
	w.links.FailOn = func(operation string) error {
		if operation == "add net1" {
			close(reached)
			<-goOn
		}
		return nil
	}
	go func() {
		<-reached
		_ = client.Close()
		time.Sleep(20 * time.Millisecond) // the server's reader sees the end
		close(goOn)
	}()
	if _, err := client.Call(t.Context(), request); err == nil {
		t.Error("the answer came over a closed connection")
	}
	eventually(t, "the addresses are free", func() bool { return w.leased() == 0 })
	eventually(t, "the record is gone", func() bool { return len(w.files(t)) == 0 })
	// The masquerade rules follow last.
	eventually(t, "only the bridge is left", func() bool {
		return cmp.Equal([]string{"host: np-eth1 bridge port eth1"}, sorted(w.links.String()))
	})
}

func TestCallerThatGoesDuringCommitLeavesNothing(t *testing.T) {
	w := serving(t)
	client := w.dial(t)
	if _, err := client.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandboxOf("c1"), Networks: both}); err != nil {
		t.Fatal(err)
	}
	w.leavesNothing(t, client, wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1")})
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.reported) > 0 {
		t.Errorf("reported: %v", w.reported)
	}
}

func TestDelWaitsForTheAddOfItsSandbox(t *testing.T) {
	w := serving(t)
	adding := w.dial(t)
	if _, err := adding.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandboxOf("c1"), Networks: "data"}); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	deleting := w.dial(t)
	go func() {
		_, err := deleting.Call(context.Background(), wire.Request{Op: wire.OpDel, Sandbox: sandboxOf("c1")})
		deleted <- err
	}()
	select {
	case err := <-deleted:
		t.Fatalf("DEL overtook the ADD: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	if _, err := adding.Call(t.Context(), wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1")}); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	if w.leased() != 0 || len(w.files(t)) != 0 {
		t.Errorf("left: %v %v", w.leases, w.files(t))
	}
}

func TestAbortFreesWhatWasPrepared(t *testing.T) {
	w := serving(t)
	client := w.dial(t)
	for _, op := range []wire.Op{wire.OpPrepare, wire.OpAbort} {
		if _, err := client.Call(t.Context(), wire.Request{Op: op, Sandbox: sandboxOf("c1"), Networks: "data"}); err != nil {
			t.Fatal(err)
		}
	}
	if w.leased() != 0 {
		t.Errorf("left: %v", w.leases)
	}
}

func TestServerRefusesWhatItDoesNotUnderstand(t *testing.T) {
	w := serving(t)
	for name, test := range map[string]struct {
		request wire.Request
		want    string
	}{
		"unknown operation":      {wire.Request{Op: "explode", Sandbox: sandboxOf("c1")}, `unknown operation "explode"`},
		"no container":           {wire.Request{Op: wire.OpDel}, "the request names no container"},
		"no namespace":           {wire.Request{Op: wire.OpPrepare, Sandbox: wire.Sandbox{ContainerID: "c1"}}, "the request names no network namespace"},
		"commit before prepare":  {wire.Request{Op: wire.OpCommit, Sandbox: sandboxOf("c1")}, "commit of what this connection did not prepare"},
		"check of an unknown":    {wire.Request{Op: wire.OpCheck, Sandbox: sandboxOf("c1")}, "sandbox c1 was given no networks by this agent"},
		"container ID as a path": {wire.Request{Op: wire.OpDel, Sandbox: sandboxOf("../c1")}, `container ID "../c1" cannot name a file`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.dial(t).Call(t.Context(), test.request)
			var known *wire.Error
			if !errors.As(err, &known) || known.Msg != test.want {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("another protocol version", func(t *testing.T) {
		ses := &session{Server: w.Server}
		_, err := ses.handle(t.Context(), &wire.Request{Version: wire.Version + 1, Op: wire.OpDel})
		if err == nil || !strings.Contains(err.Error(), "an upgrade is under way") {
			t.Errorf("got %v", err)
		}
	})
}

func TestPodNetworksWaitsForTheCache(t *testing.T) {
	w := newWorld(t)
	got, err := w.podNetworks(t.Context(), &wire.Sandbox{PodName: "p"})
	if err != nil || got.Networks != "asked by p" || got.NPWG != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := w.podNetworks(ctx, &wire.Sandbox{PodName: "unknown"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

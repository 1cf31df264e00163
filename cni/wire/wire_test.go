// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve answers every request of one connection with answer.
func serve(t *testing.T, answer func(Request) *Response) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = raw.Close() }()
		conn := NewConn(raw)
		for {
			var request Request
			if conn.Read(&request) != nil {
				return
			}
			if response := answer(request); response != nil {
				_ = conn.Write(response)
			}
		}
	}()
	return socket
}

func dial(t *testing.T, socket string) *Client {
	t.Helper()
	client, err := Dial(context.Background(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestCallCarriesTwoRoundsOverOneConnection(t *testing.T) {
	var seen []Op
	client := dial(t, serve(t, func(r Request) *Response {
		seen = append(seen, r.Op)
		return &Response{Version: Version, Networks: r.Networks, DefaultNetwork: r.Op == OpPrepare}
	}))
	for _, op := range []Op{OpPrepare, OpCommit} {
		response, err := client.Call(t.Context(), Request{Op: op, Networks: "data"})
		if err != nil {
			t.Fatal(err)
		}
		want := &Response{Version: Version, Networks: "data", DefaultNetwork: op == OpPrepare}
		if diff := cmp.Diff(want, response); diff != "" {
			t.Error(diff)
		}
	}
	if diff := cmp.Diff([]Op{OpPrepare, OpCommit}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestCallTellsTheAgentsErrorFromSilence(t *testing.T) {
	t.Run("agent's own error", func(t *testing.T) {
		client := dial(t, serve(t, func(Request) *Response {
			return &Response{Version: Version, Error: &Error{Code: CodeTryAgain, Msg: "network \"data\" has no free address"}}
		}))
		_, err := client.Call(t.Context(), Request{Op: OpPrepare})
		var own *Error
		if !errors.As(err, &own) || own.Code != CodeTryAgain || own.Msg != `network "data" has no free address` {
			t.Errorf("got %v", err)
		}
	})
	t.Run("agent hangs", func(t *testing.T) {
		client := dial(t, serve(t, func(Request) *Response { return nil }))
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := client.Call(ctx, Request{Op: OpDel})
		var own *Error
		if err == nil || errors.As(err, &own) || !strings.Contains(err.Error(), "waiting for the answer to del") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another protocol version", func(t *testing.T) {
		client := dial(t, serve(t, func(Request) *Response { return &Response{Version: Version + 1} }))
		_, err := client.Call(t.Context(), Request{Op: OpDel})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("protocol version %d", Version+1)) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReadBoundsALine(t *testing.T) {
	for name, test := range map[string]struct {
		sent string
		want error
	}{
		"too long":          {strings.Repeat("x", MaxLine+1) + "\n", ErrTooLong},
		"cut in the middle": {`{"version":1`, io.ErrUnexpectedEOF},
		"nothing":           {"", io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			go func() {
				_, _ = there.Write([]byte(test.sent))
				_ = there.Close()
			}()
			var request Request
			if err := NewConn(here).Read(&request); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			_ = here.Close()
		})
	}
}

func TestSpoolKeepsDELsUntilRemoved(t *testing.T) {
	spool := Spool(filepath.Join(t.TempDir(), "spool"))
	first := Sandbox{ContainerID: "c1", NetNS: "/run/netns/a", PodName: "p"}
	second := Sandbox{ContainerID: "c2"}
	for _, sandbox := range []Sandbox{first, second, first} {
		if err := spool.Put(sandbox); err != nil {
			t.Fatal(err)
		}
	}
	stray := filepath.Join(string(spool), "c3.json")
	if err := os.WriteFile(stray, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	dels, unreadable, err := spool.List()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Sandbox{first, second}, dels); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{stray}, unreadable); diff != "" {
		t.Error(diff)
	}
	for range 2 { // removing what is gone is no error
		if err := spool.Remove(first); err != nil {
			t.Fatal(err)
		}
	}
	dels, _, err = spool.List()
	if diff := cmp.Diff([]Sandbox{second}, dels); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestJournaledErrsOnTheSideOfYes(t *testing.T) {
	dir := t.TempDir()
	journal := filepath.Join(dir, "journal")
	if Journaled(journal, "c1") {
		t.Error("a journal that never was knows c1")
	}
	if err := os.WriteFile(journal, []byte(`00000000 {"leases":[{"containerID":"c1","ifn`), 0o600); err != nil {
		t.Fatal(err)
	}
	if !Journaled(journal, "c1") {
		t.Error("a torn line is not heeded")
	}
	if Journaled(journal, "c2") {
		t.Error("the journal knows c2, too")
	}
	if !Journaled(dir, "c2") {
		t.Error("what cannot be read is taken for empty")
	}
}

func TestSpoolRefusesAnIDThatLeavesTheFolder(t *testing.T) {
	for _, id := range []string{"", "../x", "a/b"} {
		err := Spool(t.TempDir()).Put(Sandbox{ContainerID: id})
		if err == nil || !strings.Contains(err.Error(), "cannot be spooled") {
			t.Errorf("%q: got %v", id, err)
		}
	}
}

func TestJournaledHeedsInterfacesWithoutAnAddressOfOurs(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, SandboxFolder), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, SandboxFolder, RecordName("c1")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"c1": true, "c2": false} {
		if got := Journaled(filepath.Join(dir, "journal"), id); got != want {
			t.Errorf("%s: %v", id, got)
		}
	}
}

// One file that cannot be read does not hide the others, nor is it looked at for ever.
func TestSpoolPutsAsideWhatCannotBeRead(t *testing.T) {
	spool := Spool(t.TempDir())
	if err := spool.Put(Sandbox{ContainerID: "c1"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(string(spool), "c2.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	for aside := range 2 {
		dels, unreadable, err := spool.List()
		if err != nil || len(dels) != 1 || len(unreadable) != 1-aside || spool.Aside() != aside {
			t.Errorf("got %v, unreadable %v, %v, aside %d", dels, unreadable, err, spool.Aside())
		}
		for _, path := range unreadable {
			if err := spool.PutAside(path); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestSpoolTidiesUpAfterWritersThatWereKilled(t *testing.T) {
	spool := Spool(t.TempDir())
	for name, age := range map[string]time.Duration{".new-1": partialGrace, ".new-2": 0} {
		path, at := filepath.Join(string(spool), name), time.Now().Add(-age)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := spool.Tidy(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(string(spool))
	if err != nil || len(left) != 1 || left[0].Name() != ".new-2" {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := Spool(filepath.Join(string(spool), "missing")).Tidy(); err != nil {
		t.Error(err)
	}
}

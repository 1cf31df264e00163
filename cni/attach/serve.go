// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/cni/wire"
)

// maxSessions bounds the CNI commands under way; a runtime that starts more
// pods at once waits in the socket's backlog.
const maxSessions = 64

// writeTimeout bounds the wait for a binary that does not read its answer.
const writeTimeout = 5 * time.Second

// Run re-asserts the host's side of every sandbox and serves until ctx ends.
// It returns after the last request did.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	loaded := s.loaded
	s.mu.Unlock()
	if !loaded {
		return errors.New("attach.Server.Run before ReplaySpool: the sandboxes are not known")
	}
	s.restore(ctx)
	listener, err := s.listen()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	announcing, announced := context.WithCancel(context.WithoutCancel(ctx))
	var group, announcer sync.WaitGroup
	defer announcer.Wait()
	defer announced()
	defer group.Wait() // first: the last ADDs are announced too
	group.Go(func() {
		s.replay(ctx)
		s.collect(ctx)
	})
	group.Go(func() { s.followChanges(ctx) })
	announcer.Go(func() { s.announceAll(announcing) })
	slots := make(chan struct{}, maxSessions)
	for {
		raw, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting on %s: %w", s.config.Socket(), err)
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			s.serve(ctx, raw)
		})
	}
}

// listen takes over the path of a former agent's socket. Only root may dial.
func (s *Server) listen() (net.Listener, error) {
	if err := os.MkdirAll(s.config.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state folder: %w", err)
	}
	path := s.config.Socket()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the former socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("restricting the socket: %w", err)
	}
	return listener, nil
}

// session is one connection: one CNI command.
type session struct {
	*Server
	conn *wire.Conn
	// prepared and sandbox are set between Prepare and the end of an ADD.
	prepared []wanted
	sandbox  wire.Sandbox
	// attached is set once Commit succeeded, and failed once it did not.
	attached *Sandbox
	failed   bool
	unlock   func()
}

// serve answers the requests of one connection. Its end, while a request is
// worked on too, cancels: an ADD whose caller is gone must leave nothing.
func (s *Server) serve(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn := wire.NewConn(raw)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	ses := &session{Server: s, conn: conn}
	defer ses.end(ctx)
	requests := make(chan wire.Request)
	go func() {
		defer cancel()
		for {
			var request wire.Request
			if err := conn.Read(&request); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil {
					klog.FromContext(ctx).V(2).Info("Dropped a connection", "err", err)
				}
				return
			}
			select {
			case requests <- request:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case request := <-requests:
			if !ses.answer(ctx, &request) {
				return
			}
		}
	}
}

// answer returns false if the connection is of no use any more.
func (ses *session) answer(ctx context.Context, request *wire.Request) bool {
	logger := klog.FromContext(ctx).WithValues("op", request.Op, "containerID", request.Sandbox.ContainerID,
		"pod", klog.KRef(request.Sandbox.PodNamespace, request.Sandbox.PodName))
	ctx = klog.NewContext(ctx, logger)
	started := ses.deps.Clock.Now()
	response, err := ses.handle(ctx, request)
	if err != nil {
		response = &wire.Response{Error: &wire.Error{Code: wire.CodeInternal, Msg: err.Error()}}
		var known *wire.Error
		if errors.As(err, &known) {
			response.Error.Code = known.Code
			logger.Info("Request refused", "reason", err.Error(), "took", ses.deps.Clock.Since(started))
		} else {
			logger.Error(err, "Request failed", "took", ses.deps.Clock.Since(started))
		}
	} else {
		logger.V(2).Info("Request done", "took", ses.deps.Clock.Since(started))
	}
	response.Version = wire.Version
	_ = ses.conn.SetDeadline(time.Now().Add(writeTimeout))
	if err := ses.conn.Write(response); err != nil {
		logger.Error(err, "The caller did not take its answer")
		return false
	}
	_ = ses.conn.SetDeadline(time.Time{})
	ses.answered()
	return true
}

// answered publishes what the runtime has been told, and lets others work on
// the sandbox unless an ADD is half done.
func (ses *session) answered() {
	if a := ses.attached; a != nil {
		ses.attached = nil
		ses.announcer.add(a.NetNS, a.Interfaces...)
		ses.report(a)
		ses.PodChanged(types.UID(a.PodUID)) // its annotation may have changed meanwhile
	}
	if ses.prepared == nil {
		ses.letGo()
	}
}

// letGo lets others work on the sandbox.
func (ses *session) letGo() {
	if ses.unlock != nil {
		ses.unlock()
		ses.unlock = nil
	}
}

func (ses *session) handle(ctx context.Context, request *wire.Request) (*wire.Response, error) {
	if request.Version != wire.Version {
		return nil, retry("the binary speaks protocol version %d, this agent %d: an upgrade is under way", request.Version, wire.Version)
	}
	if request.Sandbox.ContainerID == "" && request.Op != wire.OpGC && request.Op != wire.OpPodNetworks {
		return nil, invalid("the request names no container")
	}
	timeout := otherTimeout
	switch request.Op {
	case wire.OpPrepare:
		timeout = prepareTimeout
	case wire.OpCommit:
		timeout = commitTimeout
	}
	connected := ctx
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch request.Op {
	case wire.OpPrepare:
		response, err := ses.handlePrepare(ctx, request)
		if err != nil || !request.AtOnce || response.DefaultNetwork || len(response.Delegates) > 0 {
			return response, err
		}
		// That spares the binary a second round, and the work on the result: it is a
		// new process, to which all of that is dear.
		ctx, cancel := context.WithTimeout(connected, commitTimeout)
		defer cancel()
		return ses.handleCommit(ctx, request, request.CNIVersion)
	case wire.OpCommit:
		return ses.handleCommit(ctx, request, current.ImplementedSpecVersion)
	case wire.OpAbort:
		return &wire.Response{}, ses.undone(ctx)
	case wire.OpDel:
		alone := ses.alone(request.Sandbox.ContainerID)
		return &wire.Response{Alone: alone}, ses.del(ctx, &request.Sandbox)
	case wire.OpCheck:
		return &wire.Response{}, ses.check(ctx, &request.Sandbox, request.Previous)
	case wire.OpGC:
		return &wire.Response{}, ses.gc(ctx, request.Valid)
	case wire.OpPodNetworks:
		return ses.podNetworks(ctx, &request.Sandbox)
	}
	return nil, invalid("unknown operation %q", request.Op)
}

func (ses *session) handlePrepare(ctx context.Context, request *wire.Request) (*wire.Response, error) {
	if ses.unlock != nil {
		return nil, invalid("a connection serves one ADD")
	}
	if request.Sandbox.NetNS == "" {
		// What is reserved for a sandbox is collected when its namespace is gone.
		return nil, invalid("the request names no network namespace")
	}
	unlock, err := ses.busy.lock(ctx, request.Sandbox.ContainerID)
	if err != nil {
		return nil, err
	}
	ses.unlock = unlock
	all, err := ses.prepare(ctx, &request.Sandbox, request.Networks, request.NPWG)
	if err != nil {
		return nil, err
	}
	ses.prepared, ses.sandbox = all, request.Sandbox
	response := &wire.Response{DefaultNetwork: true}
	for i := range all {
		response.DefaultNetwork = response.DefaultNetwork && !all[i].primary()
	}
	if response.Delegates, err = delegates(all); err != nil {
		ses.prepared = nil
		return nil, ses.release(ctx, &ses.sandbox, err) // none of them was executed
	}
	return response, nil
}

func (ses *session) handleCommit(ctx context.Context, request *wire.Request, version string) (*wire.Response, error) {
	if ses.prepared == nil || request.Sandbox.ContainerID != ses.sandbox.ContainerID {
		return nil, invalid("commit of what this connection did not prepare")
	}
	all := ses.prepared
	if err := deliver(all, request.Delegates); err != nil {
		return nil, err // OpAbort, or the end of the connection, gives the addresses back
	}
	ses.prepared = nil
	attached, raw, err := ses.commit(ctx, &ses.sandbox, all, request.Default, version)
	if err != nil {
		ses.failed = true
		return nil, err
	}
	ses.attached = attached
	return &wire.Response{Result: raw}, nil
}

// undone gives all back that the connection holds: the caller has said that it
// has undone its own part.
func (ses *session) undone(ctx context.Context) error {
	switch {
	case ses.prepared != nil:
		ses.prepared = nil
		return ses.release(ctx, &ses.sandbox, nil)
	case ses.failed:
		ses.failed = false
		return ses.del(ctx, &ses.sandbox)
	}
	return nil
}

// abort gives back what the connection holds and was not answered. Whether its
// caller came to undo what other plugins have made is not known.
func (ses *session) abort(ctx context.Context) error {
	if a := ses.attached; a != nil {
		ses.attached = nil
		return ses.undo(ctx, a)
	}
	if all := ses.prepared; all != nil {
		ses.prepared = nil
		return ses.giveUp(ctx, &ses.sandbox, all, nil)
	}
	return nil
}

// end closes the session, however it ended.
func (ses *session) end(ctx context.Context) {
	if err := ses.abort(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Could not undo an ADD whose caller is gone", "containerID", ses.sandbox.ContainerID)
	}
	ses.letGo()
}

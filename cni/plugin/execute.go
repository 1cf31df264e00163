// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// outputDelay is how long the output of a plugin that was killed is waited for.
const outputDelay = time.Second

// executor runs plugins as libcni does, with two differences. A plugin ends with
// us: a runtime that gives up kills this process alone, and calls DEL, which must
// not meet a plugin that is still at work on the ADD. And where there is a time
// limit a plugin is killed with all that it has started, such as a plugin that it
// delegates to; libcni's own kills the plugin alone, and waits as long as any other
// process has the output open.
type executor struct{ invoke.DefaultExec }

func newExecutor() *executor {
	return &executor{invoke.DefaultExec{RawExec: &invoke.RawExec{}, PluginDecoder: version.PluginDecoder{}}}
}

// A plugin that is being replaced cannot be executed for a moment (ETXTBSY); libcni
// tries as often.
const (
	busyTries = 5
	busyPause = time.Second
)

// ExecPlugin implements invoke.Exec.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for try := 0; ; try++ {
		out, errs, err := execute(ctx, path, stdin, environ)
		switch {
		case err == nil:
			return out, nil
		case try == busyTries || !errors.Is(err, syscall.ETXTBSY):
			return nil, failure(err, out, errs)
		}
		select {
		case <-ctx.Done():
			return nil, failure(err, out, errs)
		case <-time.After(busyPause):
		}
	}
}

func execute(ctx context.Context, path string, stdin []byte, environ []string) (out, errs []byte, err error) {
	// The kernel sends the signal when the thread that forked ends, not the process
	// (prctl(2), PR_SET_PDEATHSIG); no other goroutine is to end it meanwhile.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var stdout, stderr bytes.Buffer
	plugin := exec.CommandContext(ctx, path)
	plugin.Env, plugin.Stdin, plugin.Stdout, plugin.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	plugin.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if _, limited := ctx.Deadline(); limited {
		plugin.SysProcAttr.Setpgid = true
		plugin.Cancel = func() error { return syscall.Kill(-plugin.Process.Pid, syscall.SIGKILL) }
		plugin.WaitDelay = outputDelay
	}
	err = plugin.Run()
	return stdout.Bytes(), stderr.Bytes(), err
}

// failure is what a plugin said of its failure (CNI specification, section 2,
// Error), or else what is known of it.
func failure(err error, out, errs []byte) error {
	said := &types.Error{}
	switch {
	case len(out) > 0 && json.Unmarshal(out, said) == nil && (said.Code != 0 || said.Msg != ""):
		return said
	case len(out) > 0:
		return types.NewError(types.ErrInternal, fmt.Sprintf("the plugin failed (%v) and said %q", err, out), "")
	case len(errs) > 0:
		return types.NewError(types.ErrInternal, fmt.Sprintf("the plugin failed (%v): %q", err, errs), "")
	}
	return types.NewError(types.ErrInternal, fmt.Sprintf("the plugin failed without a word: %v", err), "")
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Server is an API server that can be set back to an earlier state, as happens
// when etcd is restored from a backup.
type Server struct {
	// Config is an administrator's. It stays the same over Rewind.
	Config *rest.Config

	env *envtest.Environment
	dir string
}

// MainWithServer is Main for tests that set the API server back.
func MainWithServer(m *testing.M, ready func(*Server), options ...Option) int {
	return serve(m, func() (func() error, error) {
		s, err := launchServer(options)
		if err != nil {
			return nil, err
		}
		ready(s)
		return s.stop, nil
	})
}

func launchServer(options []Option) (_ *Server, err error) {
	env, err := environment(options)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "netplane-apiserver-")
	if err != nil {
		return nil, fmt.Errorf("making the API server's folder: %w", err)
	}
	s := &Server{env: env, dir: dir}
	started := false
	defer func() {
		if !started {
			err = errors.Join(err, s.stop())
		}
	}()
	// Folders of its own making envtest removes when a program ends.
	if err := errors.Join(os.Mkdir(s.data(), 0o700), os.Mkdir(s.certificates(), 0o700)); err != nil {
		return nil, fmt.Errorf("making the API server's folders: %w", err)
	}
	env.ControlPlane.Etcd = &envtest.Etcd{DataDir: s.data()}
	env.ControlPlane.GetAPIServer().CertDir = s.certificates()
	if s.Config, err = env.Start(); err != nil {
		return nil, fmt.Errorf("starting the API server: %w", err)
	}
	started = true
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "etcd") }

func (s *Server) certificates() string { return filepath.Join(s.dir, "certificates") }

// stop ends both programs.
func (s *Server) stop() error { return errors.Join(s.env.Stop(), os.RemoveAll(s.dir)) }

// Backup copies etcd's data to dir, which must not exist. etcd stands still for
// it, so that the copy is what a crash in that moment would have left.
func (s *Server) Backup(dir string) (err error) {
	etcd, err := s.process(s.data())
	if err != nil {
		return err
	}
	if err := etcd.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("holding etcd for a backup: %w", err)
	}
	defer func() { err = errors.Join(err, etcd.Signal(syscall.SIGCONT)) }()
	if err := os.CopyFS(dir, os.DirFS(s.data())); err != nil {
		return fmt.Errorf("copying etcd's data: %w", err)
	}
	return nil
}

// Age has etcd's revision grow, as if a time had passed in which much was
// written: after Rewind versions do not catch up soon with what had been seen.
func (s *Server) Age(revisions int) error {
	const body = `{"key": "bmV0cGxhbmU=", "value": ""}` // outside of what the API server looks at
	url := s.env.ControlPlane.Etcd.URL.JoinPath("/v3/kv/put").String()
	var group errgroup.Group
	for i := range writers {
		group.Go(func() error {
			for n := i; n < revisions; n += writers {
				response, err := http.Post(url, "application/json", strings.NewReader(body))
				if err != nil {
					return fmt.Errorf("writing to etcd: %w", err)
				}
				_, err = io.Copy(io.Discard, response.Body)
				if err = errors.Join(err, response.Body.Close()); err != nil {
					return fmt.Errorf("writing to etcd: %w", err)
				}
				if response.StatusCode != http.StatusOK {
					return fmt.Errorf("writing to etcd: %s", response.Status)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// writers is how many requests of Age are under way: what http keeps open to a host.
const writers = http.DefaultMaxIdleConnsPerHost

// Rewind kills both programs, puts the data back that Backup copied, and starts
// them again at the same addresses. Resource versions go back with the data.
func (s *Server) Rewind(dir string) error {
	plane := &s.env.ControlPlane
	if err := errors.Join(s.kill(s.certificates()), s.kill(s.data())); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.data()), os.CopyFS(s.data(), os.DirFS(dir))); err != nil {
		return fmt.Errorf("restoring etcd's data: %w", err)
	}
	if err := plane.Etcd.Start(); err != nil {
		return fmt.Errorf("starting etcd after a restore: %w", err)
	}
	if err := plane.APIServer.Start(); err != nil {
		return fmt.Errorf("starting the API server after a restore: %w", err)
	}
	return nil
}

// kill ends the program that works in a folder, and waits until it is gone: an
// orderly end would take until the last watch is closed.
func (s *Server) kill(folder string) error {
	victim, err := s.process(folder)
	if err != nil {
		return err
	}
	if err := victim.Kill(); err != nil {
		return fmt.Errorf("killing the program in %s: %w", folder, err)
	}
	for deadline := time.Now().Add(killPatience); time.Now().Before(deadline); time.Sleep(killPoll) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", victim.Pid)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return fmt.Errorf("the program in %s does not end", folder)
}

const (
	killPatience = 10 * time.Second
	killPoll     = 5 * time.Millisecond
)

// process finds the program that was given a folder of this server: envtest
// does not tell.
func (s *Server) process(folder string) (*os.Process, error) {
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, fmt.Errorf("finding the program in %s: %w", folder, err)
	}
	for _, path := range commands {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		for arg := range strings.SplitSeq(string(raw), "\x00") {
			if arg == "--data-dir="+folder || arg == "--cert-dir="+folder {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				if err != nil {
					return nil, fmt.Errorf("finding the program in %s: %w", folder, err)
				}
				return os.FindProcess(pid)
			}
		}
	}
	return nil, fmt.Errorf("no program works in %s", folder)
}

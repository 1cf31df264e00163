// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// Config says what is installed where, as the agent's container sees it.
type Config struct {
	// Source is the binary in the agent's image.
	Source string
	// BinDir and ConfDir are the node's CNI folders.
	BinDir, ConfDir string
	// Socket, SpoolDir and Journal, the agent's journal of addresses, are
	// written into the configuration, as the host sees them.
	Socket, SpoolDir, Journal string
	// Bypassed, if set, is told at each look which file the runtime takes instead
	// of ours; empty if none. It must not block.
	Bypassed func(file string)
}

const (
	// settle lets a writer finish that does not rename.
	settle = 200 * time.Millisecond
	// lookEvery finds what no event told of, and tries again what failed.
	lookEvery = 10 * time.Second
	// lookUnwatched takes its place where events cannot be had.
	lookUnwatched = 2 * time.Second
)

// Installer keeps binary and configuration in place.
type Installer struct {
	config    Config
	installed chan struct{}
	once      sync.Once
}

// New checks the configuration and changes nothing.
func New(config Config) (*Installer, error) {
	if config.Source == "" || config.BinDir == "" || config.ConfDir == "" || config.Socket == "" || config.SpoolDir == "" || config.Journal == "" {
		return nil, errors.New("install.Config has an empty field")
	}
	return &Installer{config: config, installed: make(chan struct{})}, nil
}

// Installed is closed once binary and configuration are in place, or taken away,
// or the node turned out to have no configuration to wrap: it has no network for
// pods then, with or without us.
func (i *Installer) Installed() <-chan struct{} { return i.installed }

// Run installs the binary, then the configuration, and follows the wrapped
// configuration until ctx ends. Both stay: pods come and go while the agent is
// replaced.
func (i *Installer) Run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	i.tidy(ctx)
	if err := i.installBinary(); err != nil {
		return err
	}
	// Without events the timer must do. Nodes run out of inotify instances
	// (fs.inotify.max_user_instances is 128 for all of root's programs), and
	// that must not take the agent down.
	every, events, failures := lookEvery, (<-chan fsnotify.Event)(nil), (<-chan error)(nil)
	if watcher, err := watch(i.config.ConfDir); err != nil {
		logger.Info("Looking at CNI configurations by the clock", "every", lookUnwatched, "err", err)
		every = lookUnwatched
	} else {
		defer func() { _ = watcher.Close() }()
		events, failures = watcher.Events, watcher.Errors
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				return errors.New("watching CNI configurations: the watch ended")
			}
			timer.Reset(settle)
		case err := <-failures:
			logger.Info("Lost events of CNI configurations; looking again", "err", err)
			timer.Reset(settle)
		case <-timer.C:
			timer.Reset(every)
			if err := i.Sync(ctx); err != nil {
				if err.Error() != last {
					logger.Error(err, "Left the CNI configuration as it is")
				}
				last = err.Error()
				continue
			}
			last = ""
		}
	}
}

func watch(dir string) (*fsnotify.Watcher, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watching CNI configurations: %w", err)
	}
	if err := watcher.Add(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("watching %s: %w", dir, err), watcher.Close())
	}
	return watcher, nil
}

// Sync makes binary and configuration right once.
func (i *Installer) Sync(ctx context.Context) error {
	if err := i.installBinary(); err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	target := filepath.Join(i.config.ConfDir, ConfName)
	present, err := os.ReadFile(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading our configuration: %w", err)
	}
	want, err := i.render()
	if err != nil {
		return err
	}
	if i.config.Bypassed != nil {
		i.config.Bypassed(want.bypassedBy)
	}
	switch {
	case want.conf == nil && present != nil:
		logger.Info("Removing the CNI configuration: what it wraps is gone", "wrapped", wrappedBy(present))
		err = remove(target)
	case want.conf != nil && !bytes.Equal(want.conf, present):
		if err = replace(target, want.conf, 0o600); err == nil {
			logger.Info("Wrote the CNI configuration", "file", target, "wraps", want.wraps)
		}
	}
	if err != nil {
		return err
	}
	i.once.Do(func() { close(i.installed) })
	return nil
}

// Uninstall gives the node its own configuration back, before the agent goes
// for good. The binary stays: runtimes that keep a pod's configuration call it
// for the DELs of all pods that were set up with ours.
func (i *Installer) Uninstall() error {
	if err := remove(filepath.Join(i.config.ConfDir, ConfName)); err != nil {
		return err
	}
	i.once.Do(func() { close(i.installed) })
	return nil
}

func (i *Installer) installBinary() error {
	binary, err := os.ReadFile(i.config.Source)
	if err != nil {
		return fmt.Errorf("reading the CNI binary: %w", err)
	}
	target := filepath.Join(i.config.BinDir, PluginType)
	if info, err := os.Stat(target); err == nil && info.Mode().Perm() == 0o755 {
		if present, err := os.ReadFile(target); err == nil && bytes.Equal(present, binary) {
			return nil
		}
	}
	return replace(target, binary, 0o755)
}

// replace writes a file under another name and renames it: nobody sees half of
// it, and a binary that runs is not busy. The other name has no ending that a
// runtime would read.
func replace(target string, content []byte, mode fs.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(target), partial(target))
	if err != nil {
		return fmt.Errorf("installing %s: %w", target, err)
	}
	defer func() { _ = os.Remove(temp.Name()) }()
	_, err = temp.Write(content)
	err = errors.Join(err, temp.Chmod(mode), temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), target)
	}
	if err != nil {
		return fmt.Errorf("installing %s: %w", target, err)
	}
	return nil
}

// partial is the pattern of files that are being written.
func partial(target string) string { return "." + filepath.Base(target) + ".new-*" }

// partialGrace spares the files of an agent that is about to end.
const partialGrace = time.Minute

// tidy removes what agents have left half written that were killed.
func (i *Installer) tidy(ctx context.Context) {
	for _, target := range []string{filepath.Join(i.config.BinDir, PluginType), filepath.Join(i.config.ConfDir, ConfName)} {
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(target), partial(target)))
		for _, path := range left {
			info, err := os.Stat(path)
			if err != nil || time.Since(info.ModTime()) < partialGrace {
				continue
			}
			if err := remove(path); err != nil {
				klog.FromContext(ctx).Error(err, "Kept half a file")
			}
		}
	}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

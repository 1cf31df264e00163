// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// watchMap calls changed whenever something happens in the map file's
// directory: editors and mounted ConfigMaps replace the file by renaming, which
// a watch on the file itself would lose. Until the directory exists the
// re-read by the clock must do.
func watchMap(ctx context.Context, file string, changed func()) {
	logger := klog.FromContext(ctx)
	for ctx.Err() == nil {
		if err := watchDirectory(ctx, filepath.Dir(file), changed); err != nil {
			logger.V(2).Info("Watching the map file's directory failed", "directory", filepath.Dir(file), "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rereadEvery):
			changed()
		}
	}
}

// watchDirectory returns when the watch is of no more use, or ctx ends.
func watchDirectory(ctx context.Context, dir string, changed func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer watcher.Close()
	if err := watcher.Add(dir); err != nil {
		return err
	}
	changed()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-watcher.Events:
			if !ok || event.Name == dir && event.Has(fsnotify.Remove) {
				return nil
			}
			changed()
		case err, ok := <-watcher.Errors:
			if !ok {
				return nil
			}
			return err
		}
	}
}

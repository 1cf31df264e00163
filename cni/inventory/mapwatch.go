// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"io/fs"
	"os"
	"syscall"
	"time"
)

// mapWatch notices that the map file is another, by a stat(2) once a second.
// An inotify watch would be told sooner, but nodes run out of inotify instances
// (fs.inotify.max_user_instances is 128 and all of root's programs, on kind
// those of all nodes, share it), and the watch needs the folder to exist.
type mapWatch struct {
	path string
	seen fileIdentity
}

// fileIdentity changes when the file is written or replaced, also by renaming
// and where it is a link (mounted ConfigMaps). The zero value is no file.
type fileIdentity struct {
	device, inode uint64
	size          int64
	modified      time.Time
}

// changed says whether the file changed since it was asked last.
func (w *mapWatch) changed() bool {
	now := identify(w.path)
	if now == w.seen {
		return false
	}
	w.seen = now
	return true
}

func identify(path string) fileIdentity {
	info, err := os.Stat(path)
	if err != nil {
		return fileIdentity{}
	}
	return identityOf(info)
}

func identityOf(info fs.FileInfo) fileIdentity {
	out := fileIdentity{size: info.Size(), modified: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		out.device, out.inode = stat.Dev, stat.Ino
	}
	return out
}

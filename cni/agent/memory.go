// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// gcPercent trades some CPU time, of which an agent needs little, for memory,
// which every node has to give: garbage is collected when the heap has grown by
// so much since the last time, instead of to the double.
const gcPercent = 40

// tightenGC sets gcPercent, unless the environment says otherwise in the way
// of every Go program.
func tightenGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// forgetStart gives back what only the start needed: garbage of the heap, and
// the parts of the program's file that registered each kind of Kubernetes and
// are never looked at again. The kernel maps what is needed anew.
func forgetStart() error {
	debug.FreeOSMemory()
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("looking at the agent's own memory: %w", err)
	}
	defer func() { _ = smaps.Close() }()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("looking for the agent's own file: %w", err)
	}
	parts, err := unwritten(smaps, exe)
	if err != nil {
		return fmt.Errorf("looking at the agent's own memory: %w", err)
	}
	for _, p := range parts {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, p.from, p.to-p.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("giving mapped parts of the program back: %w", errno)
		}
	}
	return nil
}

// span is a part of the address space.
type span struct{ from, to uintptr }

// unwritten finds, in the form of proc_pid_smaps(5), the parts of a file that
// are mapped to be read or run and of which no page was ever changed: of these
// nothing can be lost.
func unwritten(smaps io.Reader, file string) ([]span, error) {
	var out []span
	candidate := span{}
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if !strings.HasSuffix(fields[0], ":") { // "from-to perms offset device inode path"
			candidate = span{}
			if len(fields) == 6 && fields[5] == file && (fields[1] == "r-xp" || fields[1] == "r--p") {
				if _, err := fmt.Sscanf(fields[0], "%x-%x", &candidate.from, &candidate.to); err != nil {
					return nil, err
				}
			}
			continue
		}
		if fields[0] == "Anonymous:" && fields[1] == "0" && candidate.to > candidate.from {
			out = append(out, candidate)
		}
	}
	return out, lines.Err()
}

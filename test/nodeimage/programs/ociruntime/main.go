// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Command ociruntime stands in front of runc on machines that lack CAP_SYS_RESOURCE.
//
// A privileged container asks for every capability there is, and runc refuses to grant one that it does not hold
// itself ("unable to apply caps: operation not permitted"). Some sandboxes withhold exactly this one. The program
// takes it out of what a container asks for and then becomes runc; where the capability is held it changes nothing.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	capability    = "CAP_SYS_RESOURCE"
	capabilityBit = 24 // from linux/capability.h
	runc          = "runc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "ociruntime:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	held, err := capabilityHeld("/proc/self/status")
	if err != nil {
		return err
	}
	if !held {
		if err := stripFor(args); err != nil {
			return err
		}
	}
	path, err := exec.LookPath(runc)
	if err != nil {
		return fmt.Errorf("finding the real runtime: %w", err)
	}
	return syscall.Exec(path, append([]string{runc}, args...), os.Environ())
}

// capabilityHeld looks at the bounding set, beyond which no process below this one can ever get.
func capabilityHeld(status string) (bool, error) {
	content, err := os.ReadFile(status)
	if err != nil {
		return false, fmt.Errorf("reading own capabilities: %w", err)
	}
	for line := range strings.Lines(string(content)) {
		mask, found := strings.CutPrefix(line, "CapBnd:")
		if !found {
			continue
		}
		var bits uint64
		if _, err := fmt.Sscanf(strings.TrimSpace(mask), "%x", &bits); err != nil {
			return false, fmt.Errorf("reading own capabilities %q: %w", line, err)
		}
		return bits&(1<<capabilityBit) != 0, nil
	}
	return false, errors.New("reading own capabilities: no line CapBnd")
}

// stripFor changes the file that the given runc command line reads capabilities from, if it reads one.
func stripFor(args []string) error {
	switch {
	case slices.Contains(args, "create"), slices.Contains(args, "run"):
		return stripFile(filepath.Join(flagValue(args, "--bundle", "-b"), "config.json"), "process")
	case slices.Contains(args, "exec"):
		if file := flagValue(args, "--process", "-p"); file != "" {
			return stripFile(file)
		}
	}
	return nil
}

func flagValue(args []string, names ...string) string {
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if !slices.Contains(names, name) {
			continue
		}
		if joined {
			return value
		}
		if i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// stripFile removes the capability from the process that lies under the given keys of a JSON file.
func stripFile(file string, keys ...string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the container's configuration: %w", err)
	}
	stripped, err := strip(content, keys)
	if err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	if err := os.WriteFile(file, stripped, 0o600); err != nil {
		return fmt.Errorf("writing the container's configuration: %w", err)
	}
	return nil
}

// strip works on generic JSON, so that fields of newer runtime specifications survive.
func strip(content []byte, keys []string) ([]byte, error) {
	var document map[string]any
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil {
		return nil, err
	}
	process := document
	for _, key := range keys {
		process, _ = process[key].(map[string]any)
	}
	sets, _ := process["capabilities"].(map[string]any)
	for name, set := range sets {
		list, _ := set.([]any)
		sets[name] = slices.DeleteFunc(list, func(c any) bool { return c == capability })
	}
	return json.Marshal(document)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
)

// profiler writes profiles for go tool pprof into a directory; the zero value
// writes none. A process has one CPU profile at a time, and so has a profiler.
type profiler struct {
	dir string
	cpu io.Closer // while one is being taken
}

// startCPU begins to take the CPU profile of this name.
func (p *profiler) startCPU(name string) error {
	if p.dir == "" {
		return nil
	}
	file, err := p.create(name + ".cpu.pprof")
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return errors.Join(fmt.Errorf("starting the CPU profile: %w", err), file.Close())
	}
	p.cpu = file
	return nil
}

// stopCPU writes the CPU profile, if one is being taken.
func (p *profiler) stopCPU() error {
	if p.cpu == nil {
		return nil
	}
	pprof.StopCPUProfile()
	err := p.cpu.Close()
	p.cpu = nil
	return err
}

// heap writes what is in use now, as of the last garbage collection.
func (p *profiler) heap(name string) error {
	if p.dir == "" {
		return nil
	}
	file, err := p.create(name + ".heap.pprof")
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("heap").WriteTo(file, 0), file.Close())
}

func (p *profiler) create(name string) (*os.File, error) {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the profiles: %w", err)
	}
	return os.Create(filepath.Join(p.dir, name))
}

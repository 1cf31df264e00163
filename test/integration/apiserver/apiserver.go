// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package apiserver starts a real etcd and kube-apiserver with netplane's
// CRDs, for the integration tests of every part. The two programs are found
// through KUBEBUILDER_ASSETS, which `make test-integration` sets from
// hack/assets.sh; without it the tests are skipped and say so.
package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// assetsVariable is envtest's own name for the folder with the two programs.
const assetsVariable = "KUBEBUILDER_ASSETS"

// starting is how long etcd and kube-apiserver may each take to start: they
// need seconds, but the machine may have much else to do.
const starting = 2 * time.Minute

// ErrNoAssets is returned by Launch where nothing says which etcd and
// kube-apiserver to run.
var ErrNoAssets = errors.New(assetsVariable + ` is not set: run the tests through "make test-integration", or set it to the folder that hack/assets.sh prints`)

// Option changes what is started.
type Option func(*envtest.Environment) error

// WithoutCRDs leaves netplane's CRDs out: for tests of what a part says when
// they are missing.
func WithoutCRDs() Option {
	return func(env *envtest.Environment) error {
		env.CRDDirectoryPaths = nil
		return nil
	}
}

// WithCRDs adds CRDs of others: files, or folders of them.
func WithCRDs(paths ...string) Option {
	return func(env *envtest.Environment) error {
		env.CRDDirectoryPaths = append(env.CRDDirectoryPaths, paths...)
		return nil
	}
}

// WithAPIServerFlag sets one flag of kube-apiserver.
func WithAPIServerFlag(name, value string) Option {
	return func(env *envtest.Environment) error {
		env.ControlPlane.GetAPIServer().Configure().Set(name, value)
		return nil
	}
}

// Start runs an API server until the test and its subtests are done, and
// returns an administrator's configuration for it. The test is skipped where
// the programs are missing.
//
// Order matters at the end: the API server waits for open watches when it
// stops. Cleanups run last in, first out, so whatever is started after Start
// and ended by t.Context() or t.Cleanup ends before it.
func Start(t testing.TB, options ...Option) *rest.Config {
	t.Helper()
	config, stop, err := Launch(options...)
	if errors.Is(err, ErrNoAssets) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stopping the API server: %v", err)
		}
	})
	return config
}

// Main is the body of a TestMain whose tests share one API server: it starts
// it, hands its configuration to ready, runs the tests and stops it. It
// returns the exit code. Tests must end what they started before they return.
func Main(m *testing.M, ready func(*rest.Config), options ...Option) int {
	return serve(m, func() (func() error, error) {
		config, stop, err := Launch(options...)
		if err == nil {
			ready(config)
		}
		return stop, err
	})
}

// serve runs the tests between start and what it returns.
func serve(m *testing.M, start func() (stop func() error, err error)) int {
	stop, err := start()
	if errors.Is(err, ErrNoAssets) {
		fmt.Println("skipped:", err)
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the API server:", err)
		return 1
	}
	return code
}

// Launch runs an API server until stop is called. It returns ErrNoAssets
// where the programs are missing.
func Launch(options ...Option) (config *rest.Config, stop func() error, err error) {
	env, err := environment(options)
	if err != nil {
		return nil, nil, err
	}
	config, err = env.Start()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("starting the API server: %w", err), env.Stop())
	}
	return config, env.Stop, nil
}

// environment is what is to be started.
func environment(options []Option) (*envtest.Environment, error) {
	if os.Getenv(assetsVariable) == "" {
		return nil, ErrNoAssets
	}
	root, err := repositoryRoot()
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		CRDDirectoryPaths:        []string{filepath.Join(root, "manifests", "crds")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: starting,
	}
	for _, option := range options {
		if err := option(env); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// repositoryRoot is the nearest folder above the test's own that has a go.mod.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("finding the repository: no folder above the test has a go.mod")
		}
	}
}

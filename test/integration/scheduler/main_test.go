// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scheduler tests netplane-scheduler as it is shipped: the command,
// with manifests/base/scheduler/config.yaml and the rights that
// manifests/base/scheduler/rbac.yaml gives it, runs in this process against a
// real API server. Agents and controller are played by the tests, which write
// what those would.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/app"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// manifests are what is shipped for the scheduler.
const manifests = apiserver.Manifests + "/scheduler"

// connection leads an administrator to the API server that all tests share,
// and api is a client of it. ended receives what the scheduler returns, should
// it return.
var (
	connection *rest.Config
	api        client.Client
	ended      = make(chan error, 1)
)

func TestMain(m *testing.M) {
	if code, scheduled := schedulerprocess.Main(); scheduled {
		os.Exit(code)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, err := os.MkdirTemp("", "netplane-scheduler-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	config, stop, err := apiserver.Launch()
	connection = config
	if errors.Is(err, apiserver.ErrNoAssets) {
		fmt.Println("skipped:", err)
		return 0
	}
	if err == nil {
		err = start(ctx, config, dir)
	}
	code := 1
	if err == nil {
		code = m.Run()
	}
	// The scheduler's watches end before the API server does, which waits for them.
	cancel()
	if stop != nil {
		err = errors.Join(err, stop())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// start installs the scheduler's rights and runs it.
func start(ctx context.Context, config *rest.Config, dir string) error {
	var err error
	if api, err = prepare(ctx, config); err != nil {
		return err
	}
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, config, dir)
	if err != nil {
		return err
	}
	cmd := app.NewCommand()
	// Losing leadership ends the process, so this process must not have it.
	cmd.SetArgs([]string{"--config=" + file, "--leader-elect=false", "--secure-port=0"})
	cmd.SetContext(ctx)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	// Tests log, too: the process's logger is set before they begin.
	ready, schedule := make(chan struct{}), cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		close(ready)
		return schedule(cmd, args)
	}
	go func() { ended <- cmd.Execute() }()
	select {
	case <-ready:
		return nil
	case err := <-ended:
		return fmt.Errorf("starting the scheduler: %w", err)
	}
}

// prepare gives a new API server what the scheduler needs, and returns an
// administrator's client.
func prepare(ctx context.Context, config *rest.Config) (client.Client, error) {
	api, err := apiserver.NewClient(config)
	if err != nil {
		return nil, err
	}
	if err := api.Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}); err != nil {
		return nil, fmt.Errorf("creating the namespace: %w", err)
	}
	return api, apiserver.Apply(ctx, api, filepath.Join(manifests, "rbac.yaml"))
}

// soon is how long the tests wait for what must come "within seconds": the
// scheduler's own backoff after a failed attempt begins at one second.
const soon = 10 * time.Second

// eventually polls until check returns an empty text, and fails with it otherwise.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	eventuallyWithin(t, soon, check)
}

func eventuallyWithin(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("the scheduler ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal(complaint)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

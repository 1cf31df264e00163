// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scheduler tests netplane-scheduler as it is shipped: the command,
// with manifests/base/scheduler/config.yaml and the rights that
// manifests/base/scheduler/rbac.yaml gives it, runs in this process against a
// real API server. Agents and controller are played by the tests, which write
// what those would.
package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/app"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// manifests are what is shipped for the scheduler.
const manifests = "../../../manifests/base/scheduler"

// connection leads an administrator to the API server that all tests share,
// and api is a client of it. ended receives what the scheduler returns, should
// it return.
var (
	connection *rest.Config
	api        client.Client
	ended      = make(chan error, 1)
)

func TestMain(m *testing.M) {
	if os.Getenv(asScheduler) != "" {
		os.Exit(scheduleOnly())
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
	file, err := writeConfig(config, dir)
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
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), v1alpha1.AddToScheme(types)); err != nil {
		return nil, err
	}
	api, err := client.New(config, client.Options{Scheme: types})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	if err := api.Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}); err != nil {
		return nil, fmt.Errorf("creating the namespace: %w", err)
	}
	return api, apply(ctx, api, filepath.Join(manifests, "rbac.yaml"))
}

func apply(ctx context.Context, api client.Client, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		if err := api.Create(ctx, &object); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("creating %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

// writeConfig writes the base's configuration for the API server.
func writeConfig(config *rest.Config, dir string) (string, error) {
	return writeConfigOf(filepath.Join(manifests, "config.yaml"), config, dir)
}

// writeConfigOf writes a shipped configuration with one change: how to reach
// the API server, and as whom.
func writeConfigOf(shippedFile string, config *rest.Config, dir string) (string, error) {
	raw, err := os.ReadFile(shippedFile)
	if err != nil {
		return "", err
	}
	var shipped map[string]any
	if err := yaml.Unmarshal(raw, &shipped); err != nil {
		return "", fmt.Errorf("reading the shipped configuration: %w", err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	clientConnection, ok := shipped["clientConnection"].(map[string]any)
	if !ok {
		return "", errors.New("the shipped configuration has no clientConnection")
	}
	clientConnection["kubeconfig"] = kubeconfig
	if raw, err = yaml.Marshal(shipped); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "config.yaml")
	return file, errors.Join(os.WriteFile(file, raw, 0o600), writeKubeconfig(config, kubeconfig))
}

// writeKubeconfig lets the scheduler act with its service account's rights only.
func writeKubeconfig(config *rest.Config, file string) error {
	const account = "system:serviceaccount:" + v1alpha1.SystemNamespace + ":netplane-scheduler"
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"test": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"test": {
			ClientCertificateData: config.CertData, ClientKeyData: config.KeyData,
			Impersonate: account, ImpersonateGroups: []string{"system:serviceaccounts", "system:authenticated"},
		}},
		Contexts:       map[string]*clientcmdapi.Context{"test": {Cluster: "test", AuthInfo: "test"}},
		CurrentContext: "test",
	}, file)
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

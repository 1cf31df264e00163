// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package tight tests Networks that have fewer blocks than nodes, with all who
// take part against a real API server: two netplane-schedulers, as they are
// shipped, in processes of their own; the controller that says that a Network
// is Tight; and the address management of each node's agent. Only kubelets are
// missing: the tests reserve a bound pod's address as a CNI ADD would.
package tight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/component-base/cli"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/network"
	"github.com/netplane/netplane/scheduler/app"
	"github.com/netplane/netplane/test/integration/apiserver"
)

const (
	manifests = "../../../manifests/base"

	// asScheduler in the environment makes the test's program nothing but
	// netplane-scheduler: feature gates and metrics belong to a process.
	asScheduler = "NETPLANE_TEST_AS_SCHEDULER"

	// otherScheduler is the profile of the second scheduler.
	otherScheduler = "netplane-other"
)

// What the tests share: the API server, an administrator's client of it, and
// the types that both know.
var (
	connection *rest.Config
	api        client.Client
	types      = runtime.NewScheme()
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getenv(asScheduler) != "" {
		cmd := app.NewCommand()
		cmd.SetContext(genericapiserver.SetupSignalContext())
		return cli.Run(cmd)
	}
	ctrllog.SetLogger(klog.Background())
	config, stop, err := apiserver.Launch()
	if errors.Is(err, apiserver.ErrNoAssets) {
		fmt.Fprintln(os.Stderr, "skipped:", err)
		return 0
	}
	code := 1
	if err == nil {
		connection = rest.CopyConfig(config)
		connection.QPS = -1
		code, err = runAll(m)
	}
	if stop != nil {
		err = errors.Join(err, stop())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// runAll runs the tests with controller and schedulers, which end before the
// API server does: it waits for open watches.
func runAll(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "netplane-tight-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := install(ctx); err != nil {
		return 1, err
	}
	ended, err := startController(ctx)
	if err != nil {
		return 1, err
	}
	defer func() {
		cancel()
		err = errors.Join(err, <-ended)
	}()
	for _, profile := range []string{v1alpha1.DefaultSchedulerName, otherScheduler} {
		end, err := startScheduler(dir, profile)
		if err != nil {
			return 1, err
		}
		defer end()
	}
	return m.Run(), nil
}

// install gives the API server what is shipped: the scheduler's rights and the
// policy that holds blocks to their Networks.
func install(ctx context.Context) error {
	err := errors.Join(scheme.AddToScheme(types), v1alpha1.AddToScheme(types))
	if err != nil {
		return err
	}
	if api, err = client.New(connection, client.Options{Scheme: types}); err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	if err := api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}); err != nil {
		return fmt.Errorf("creating the namespace: %w", err)
	}
	return errors.Join(apply(ctx, manifests+"/scheduler/rbac.yaml"), apply(ctx, manifests+"/policies/ipblock-in-network.yaml"))
}

func apply(ctx context.Context, file string) error {
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
		if err := api.Create(ctx, &object); err != nil {
			return fmt.Errorf("creating %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

func startController(ctx context.Context) (ended <-chan error, err error) {
	mgr, err := ctrl.NewManager(connection, ctrl.Options{Scheme: types, Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		return nil, fmt.Errorf("making the controller: %w", err)
	}
	if err := network.Setup(mgr, network.Options{Registerer: prometheus.NewRegistry()}); err != nil {
		return nil, err
	}
	out := make(chan error, 1)
	go func() { out <- mgr.Start(ctx) }()
	return out, nil
}

// startScheduler runs a scheduler with the shipped configuration; end kills it.
func startScheduler(dir, profile string) (end func(), err error) {
	shipped, err := os.ReadFile(manifests + "/scheduler/config.yaml")
	if err != nil {
		return nil, err
	}
	const connects, names = "clientConnection:\n", "schedulerName: " + v1alpha1.DefaultSchedulerName + "\n"
	if !bytes.Contains(shipped, []byte(connects)) || !bytes.Contains(shipped, []byte(names)) {
		return nil, fmt.Errorf("the shipped configuration has no %q or no %q", connects, names)
	}
	kubeconfig, file := filepath.Join(dir, profile+".kubeconfig"), filepath.Join(dir, profile+".yaml")
	shipped = bytes.Replace(shipped, []byte(connects), []byte(connects+"  kubeconfig: "+kubeconfig+"\n"), 1)
	shipped = bytes.Replace(shipped, []byte(names), []byte("schedulerName: "+profile+"\n"), 1)
	log, err := os.Create(filepath.Join(dir, profile+".log"))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(file, shipped, 0o600), writeKubeconfig(kubeconfig)); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "--config="+file, "--leader-elect=false", "--secure-port=0", "--v=2")
	cmd.Env = append(os.Environ(), asScheduler+"=1")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the scheduler: %w", err)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed" is no news
		_ = log.Close()
	}, nil
}

// writeKubeconfig lets the schedulers act with their service account's rights only.
func writeKubeconfig(file string) error {
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"test": {Server: connection.Host, CertificateAuthorityData: connection.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"test": {
			ClientCertificateData: connection.CertData, ClientKeyData: connection.KeyData,
			Impersonate:       "system:serviceaccount:" + v1alpha1.SystemNamespace + ":netplane-scheduler",
			ImpersonateGroups: []string{"system:serviceaccounts", "system:authenticated"},
		}},
		Contexts:       map[string]*clientcmdapi.Context{"test": {Cluster: "test", AuthInfo: "test"}},
		CurrentContext: "test",
	}, file)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchendpoints

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	builtin "k8s.io/kubernetes/pkg/controller/endpointslice"

	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// Each controller runs in a process of its own, as it does in a cluster: ours is
// the program as it is shipped. kube-controller-manager's is this test binary,
// which runs nothing else where this variable names a kubeconfig.
const theirsVariable = "BENCH_THEIRS"

// kube-controller-manager's defaults: pkg/controller/apis/config/v1alpha1 (its
// limits count for each of its controllers, which have a client each) and
// pkg/controller/endpointslice/config/v1alpha1; changes are not gathered.
const (
	theirQPS, theirBurst = 20, 30
	theirWorkers         = 5
	theirMaxEndpoints    = 100
)

func TestMain(m *testing.M) {
	kubeconfig := os.Getenv(theirsVariable)
	if kubeconfig == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serveTheirs(ctx, kubeconfig); err != nil {
		fmt.Fprintln(os.Stderr, "running kube-controller-manager's controller:", err)
		os.Exit(1)
	}
}

// serveTheirs runs kube-controller-manager's own controller as it does itself
// (cmd/kube-controller-manager/app): informers by a client of their own, writes
// with the limits and rights of the controller, all by protobuf.
func serveTheirs(ctx context.Context, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	config.ContentType = runtime.ContentTypeProtobuf
	if config.QPS, config.Burst, err = theirLimits(); err != nil {
		return err
	}
	const account = "system:serviceaccount:kube-system:endpointslice-controller"
	config.Impersonate = rest.ImpersonationConfig{UserName: account, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}}
	watching, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	writing, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	trim := func(object any) (any, error) {
		if accessor, err := meta.Accessor(object); err == nil {
			accessor.SetManagedFields(nil)
		}
		return object, nil
	}
	factory := informers.NewSharedInformerFactoryWithOptions(watching, 0, informers.WithTransform(trim))
	controller := builtin.NewController(ctx, factory.Core().V1().Pods(), factory.Core().V1().Services(), factory.Core().V1().Nodes(),
		factory.Discovery().V1().EndpointSlices(), theirMaxEndpoints, writing, 0)
	factory.Start(ctx.Done())
	controller.Run(ctx, theirWorkers)
	factory.Shutdown()
	return nil
}

// Their limits come by the environment, so that other ones can be tried.
const (
	theirQPSVariable   = "THEIR_QPS"
	theirBurstVariable = "THEIR_BURST"
)

func theirLimits() (qps float32, burst int, err error) {
	number, err := strconv.ParseFloat(os.Getenv(theirQPSVariable), 32)
	if err == nil {
		burst, err = strconv.Atoi(os.Getenv(theirBurstVariable))
	}
	return float32(number), burst, err
}

// runTheirs runs their controller until the benchmark ends.
func (w *world) runTheirs(b *testing.B) {
	b.Helper()
	self, err := os.Executable()
	must(b, err)
	kubeconfig := filepath.Join(b.TempDir(), "kubeconfig")
	must(b, apiserver.WriteKubeconfig(kubeconfig, w.config, ""))
	qps, burst := figures.Setting(b, theirQPSVariable, theirQPS), figures.Setting(b, theirBurstVariable, theirBurst)
	run := exec.Command(self) // #nosec G204 -- this very program
	run.Env = append(os.Environ(), theirsVariable+"="+kubeconfig,
		fmt.Sprintf("%s=%d", theirQPSVariable, qps), fmt.Sprintf("%s=%d", theirBurstVariable, burst))
	startProcess(b, run)
}

// runOurs builds our controller and runs it, with the rights that it has in a
// cluster, until the benchmark ends; it returns the process.
func (w *world) runOurs(b *testing.B) int {
	b.Helper()
	must(b, apiserver.Apply(b.Context(), w, manifests+"/namespace.yaml", manifests+"/controller/rbac.yaml"))
	dir := b.TempDir()
	binary, kubeconfig := filepath.Join(dir, "netplane-controller"), filepath.Join(dir, "kubeconfig")
	build := exec.CommandContext(b.Context(), "go", "build", "-o", binary, "./netcontroller")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("building the controller: %v\n%s", err, out)
	}
	must(b, apiserver.WriteKubeconfig(kubeconfig, w.config, "netplane-controller"))
	return startProcess(b, exec.Command(binary, "--kubeconfig="+kubeconfig, "--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address=0")) // #nosec G204 -- built above
}

// startProcess runs a program until the benchmark ends, which fails if the
// program ends before.
func startProcess(b *testing.B, run *exec.Cmd) int {
	b.Helper()
	run.Stdout, run.Stderr = os.Stdout, os.Stderr
	run.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(b, run.Start())
	b.Cleanup(func() {
		if err := run.Process.Signal(syscall.SIGTERM); err != nil {
			b.Errorf("%s ended early: %v", filepath.Base(run.Path), err)
		}
		_ = run.Wait()
	})
	return run.Process.Pid
}

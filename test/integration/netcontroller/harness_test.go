// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netcontroller_test tries netplane-controller against a real API server:
// the program as it is built, as the service account and with the roles of
// manifests/base, so that a missing right fails a test.
package netcontroller_test

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/program"
)

const (
	account = "netplane-controller"

	// patience bounds every wait; what is awaited takes far less unless
	// something is broken or the machine is very busy.
	patience = 60 * time.Second
	poll     = 50 * time.Millisecond
)

// build compiles the program.
func build(t *testing.T) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "netplane-controller")
	program.Build(t, target, "./netcontroller")
	return target
}

// controller is a running netplane-controller.
type controller struct {
	metrics, health string // addresses
}

// start runs the program as its service account until the test ends.
func start(t *testing.T, binary string, config *rest.Config) *controller {
	t.Helper()
	p := &controller{metrics: program.FreeAddress(t), health: program.FreeAddress(t)}
	var log bytes.Buffer
	command := exec.Command(binary,
		"--kubeconfig="+kubeconfig(t, config, account),
		"--metrics-bind-address="+p.metrics,
		"--health-probe-bind-address="+p.health,
		"--counter-interval=1s",
		"--node-gone-grace=10s",
		"--v=2",
	)
	command.Stdout, command.Stderr = &log, &log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("ending the program: %v", err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the program ended with: %v", err)
			}
		case <-time.After(patience):
			t.Error("the program did not end")
			_ = command.Process.Kill()
			<-ended //nolint:errcheck // it was killed: how it ended says nothing
		}
		if strings.Contains(log.String(), "is forbidden") {
			t.Error("the service account lacks a right")
		}
		if t.Failed() {
			t.Logf("the program's log:\n%s", log.String())
		}
	})
	return p
}

// kubeconfig writes a file that reaches the API server as a service account.
func kubeconfig(t *testing.T, config *rest.Config, account string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := apiserver.WriteKubeconfig(file, config, account); err != nil {
		t.Fatal(err)
	}
	return file
}

// install makes the system namespace and the program's roles, and returns an
// administrator's client.
func install(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	c, err := apiserver.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	if err := apiserver.Apply(t.Context(), c, apiserver.Manifests+"/controller/rbac.yaml"); err != nil {
		t.Fatal(err)
	}
	return c
}

func create(t *testing.T, c client.Client, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.Create(t.Context(), object); err != nil {
			t.Fatalf("creating %T %s: %v", object, object.GetName(), err)
		}
	}
}

// remove deletes at once, as kubelet does when a pod's containers are gone.
func remove(t *testing.T, c client.Client, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.Delete(t.Context(), object, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			t.Fatalf("deleting %T %s: %v", object, object.GetName(), err)
		}
	}
}

// eventually waits until check finds nothing wrong.
func eventually(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(poll) {
		if err = check(t.Context()); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// never watches for a while that check goes on finding nothing wrong.
func never(t *testing.T, what string, during time.Duration, check func(context.Context) error) {
	t.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(poll) {
		if err := check(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netcontroller_test tries netplane-controller against a real API server:
// the program as it is built, as the service account and with the roles of
// manifests/base, so that a missing right fails a test.
package netcontroller_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	root      = "../../.."
	rolesFile = root + "/manifests/base/controller/rbac.yaml"
	account   = "system:serviceaccount:netplane-system:netplane-controller"

	// patience bounds every wait; what is awaited takes far less unless
	// something is broken or the machine is very busy.
	patience = 60 * time.Second
	poll     = 50 * time.Millisecond
)

// newClient is an administrator's.
func newClient(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// build compiles the program once per test run.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "netplane-controller")
	command := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./netcontroller")
	command.Dir = root
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building the program: %v\n%s", err, out)
	}
	return program
}

// program is a running netplane-controller.
type program struct {
	metrics, health string // addresses
}

// start runs the program as its service account until the test ends.
func start(t *testing.T, binary string, config *rest.Config) *program {
	t.Helper()
	p := &program{metrics: freeAddress(t), health: freeAddress(t)}
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

// fetch reads one page of the program's own server.
func fetch(address, path string) (string, error) {
	response, err := http.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// kubeconfig writes a file that reaches the API server as the given user.
func kubeconfig(t *testing.T, config *rest.Config, user string) string {
	t.Helper()
	const name = "test"
	out := clientcmdapi.NewConfig()
	out.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	out.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: config.CertData, ClientKeyData: config.KeyData, Impersonate: user,
	}
	out.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	out.CurrentContext = name
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*out, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// install makes the system namespace and the program's roles.
func install(t *testing.T, c client.Client) {
	t.Helper()
	create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	file, err := os.Open(rolesFile)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	decoder := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("reading %s: %v", rolesFile, err)
		}
		if len(object.Object) > 0 {
			create(t, c, object)
		}
	}
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

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/program"
)

// A controller that keeps its lease over a restore, or needs none, would go on
// with caches whose watches are silent.
func TestTheControllerEndsWhenTheAPIServerWasSetBack(t *testing.T) {
	dir := t.TempDir()
	binary, kubeconfig := filepath.Join(dir, "controller"), filepath.Join(dir, "kubeconfig")
	program.Build(t, binary, "./netcontroller")
	api, err := apiserver.NewClient(apiServer.Config)
	if err == nil {
		err = apiserver.WriteKubeconfig(kubeconfig, apiServer.Config, "")
	}
	if err == nil {
		err = apiServer.Backup(filepath.Join(dir, "backup"))
	}
	if err == nil {
		err = apiServer.Age(backupAge)
	}
	if err == nil { // the caches are of after the backup
		err = api.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "after-the-backup"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	address := program.FreeAddress(t)
	var said bytes.Buffer
	controller := exec.CommandContext(ctx, binary, "--kubeconfig", kubeconfig, "--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address="+address)
	controller.Stderr = &said
	if err := controller.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- controller.Wait() }()
	for ready := errors.New("not asked"); ready != nil; time.Sleep(look) {
		if _, ready = program.Fetch(address, "/readyz"); ctx.Err() != nil {
			t.Fatalf("the controller is not ready: %v", ready)
		}
	}
	if err := apiServer.Rewind(filepath.Join(dir, "backup")); err != nil {
		t.Fatal(err)
	}
	rewound := time.Now()
	err = <-ended
	if ctx.Err() != nil || err == nil || !strings.Contains(said.String(), "the API server's state went back") {
		t.Errorf("the controller ended with %v, %v; it said\n%s", err, ctx.Err(), said.String())
	}
	t.Logf("the controller ended %s after the API server was back", time.Since(rewound).Round(time.Millisecond))
}

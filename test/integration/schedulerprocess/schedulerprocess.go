// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package schedulerprocess runs netplane-scheduler in a process of its own for
// the integration tests: feature gates and metrics belong to a process, and
// losing leadership ends it. The process is the test's own program, started
// once more, so that nothing is built a second time.
package schedulerprocess

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/cli"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/scheduler/app"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// Shipped is the configuration of manifests/base.
const Shipped = apiserver.Manifests + "/scheduler/config.yaml"

// account has the rights of manifests/base/scheduler/rbac.yaml.
const account = "netplane-scheduler"

// variable in the environment makes the test's program nothing but netplane-scheduler.
const variable = "NETPLANE_TEST_AS_SCHEDULER"

// Starting is how long a process may take until it schedules or stands by:
// long, because the test's machine may have much else to do.
const Starting = time.Minute

// Main is for the first line of a TestMain: where this process was started to
// be a scheduler it is one, and the answer is true and its exit code.
func Main() (code int, scheduled bool) {
	if os.Getenv(variable) == "" {
		return 0, false
	}
	cmd := app.NewCommand()
	cmd.SetContext(genericapiserver.SetupSignalContext())
	return cli.Run(cmd), true
}

// WriteConfig writes a shipped configuration into dir, with one change of its
// own: how to reach the API server, and as whom. It returns the file.
func WriteConfig(shipped string, config *rest.Config, dir string, changes ...func(configuration map[string]any)) (string, error) {
	raw, err := os.ReadFile(shipped)
	if err != nil {
		return "", fmt.Errorf("reading the shipped configuration: %w", err)
	}
	var configuration map[string]any
	if err := yaml.Unmarshal(raw, &configuration); err != nil {
		return "", fmt.Errorf("reading the shipped configuration: %w", err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	connection, ok := configuration["clientConnection"].(map[string]any)
	if !ok {
		return "", errors.New("the shipped configuration has no clientConnection")
	}
	connection["kubeconfig"] = kubeconfig
	for _, change := range changes {
		change(configuration)
	}
	if raw, err = yaml.Marshal(configuration); err != nil {
		return "", fmt.Errorf("writing a scheduler's configuration: %w", err)
	}
	file := filepath.Join(dir, "config.yaml")
	return file, errors.Join(os.WriteFile(file, raw, 0o600), apiserver.WriteKubeconfig(kubeconfig, config, account))
}

// Process is a running scheduler.
type Process struct {
	cmd *exec.Cmd
	log string // its file
}

// Launch runs a scheduler with a configuration that WriteConfig has written,
// and waits until it schedules or stands by. Its log goes beside the
// configuration. Whoever launches it must Kill it.
func Launch(config string, flags ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding the test's program: %w", err)
	}
	log, err := os.CreateTemp(filepath.Dir(config), "scheduler-*.log")
	if err != nil {
		return nil, fmt.Errorf("making the scheduler's log: %w", err)
	}
	defer func() { _ = log.Close() }() // the process has a handle of its own
	p := &Process{
		cmd: exec.Command(self, append([]string{"--config=" + config, "--secure-port=0", "--v=3"}, flags...)...),
		log: log.Name(),
	}
	p.cmd.Env = append(os.Environ(), variable+"=1")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the scheduler: %w", err)
	}
	for deadline := time.Now().Add(Starting); !p.started(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Kill()
			return nil, fmt.Errorf("the scheduler has not started within %s; it wrote:\n%s", Starting, p.LastLines(60))
		}
	}
	return p, nil
}

// Start is Launch for one test: the process is killed when the test ends, and
// its log shown if that failed.
func Start(t testing.TB, config string, flags ...string) *Process {
	t.Helper()
	p, err := Launch(config, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("scheduler %d wrote:\n%s", p.cmd.Process.Pid, p.LastLines(60))
		}
	})
	return p
}

func (p *Process) started() bool {
	text := p.Log()
	return strings.Contains(text, "Handlers synced") || strings.Contains(text, "Attempting to acquire leader lease")
}

// Kill ends the process as a crash would: it gives no lease back.
func (p *Process) Kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed" is no news
}

// Log is what the process has written so far.
func (p *Process) Log() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// LastLines are the last n of Log.
func (p *Process) LastLines(n int) string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

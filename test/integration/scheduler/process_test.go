// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/cli"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/scheduler/app"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// asScheduler in the environment makes the test's program nothing but
// netplane-scheduler: feature gates belong to a process, and so does losing
// leadership, which ends it.
const asScheduler = "NETPLANE_TEST_AS_SCHEDULER"

// scheduleOnly is the main of netplane-scheduler.
func scheduleOnly() int {
	cmd := app.NewCommand()
	cmd.SetContext(genericapiserver.SetupSignalContext())
	return cli.Run(cmd)
}

// process is a scheduler of its own.
type process struct {
	t       *testing.T
	cmd     *exec.Cmd
	logFile string
}

// starting is how long a process may take until it schedules or stands by:
// long, because the test's machine may have much else to do.
const starting = time.Minute

// startProcess runs the scheduler with a configuration that writeConfigOf has
// written, and waits until it schedules or stands by. It is killed when the
// test ends, and its log shown if that failed.
func startProcess(t *testing.T, config string, flags ...string) *process {
	t.Helper()
	logFile := filepath.Join(t.TempDir(), "scheduler.log")
	log, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(self, append([]string{"--config=" + config, "--secure-port=0", "--v=3"}, flags...)...), logFile: logFile}
	p.cmd.Env = append(os.Environ(), asScheduler+"=1")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		_ = log.Close()
		if t.Failed() {
			t.Logf("scheduler %d wrote:\n%s", p.cmd.Process.Pid, lastLines(logFile, 60))
		}
	})
	eventuallyWithin(t, starting, func() string {
		raw, err := os.ReadFile(logFile)
		if err != nil {
			return err.Error()
		}
		if text := string(raw); !strings.Contains(text, "Handlers synced") && !strings.Contains(text, "Attempting to acquire leader lease") {
			return "the scheduler has not started"
		}
		return ""
	})
	return p
}

// kill ends the process as a crash would: it gives no lease back.
func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Errorf("killing the scheduler: %v", err)
	}
	_ = p.cmd.Wait() // "signal: killed" is no news
}

// unbatched are the profiles without batching, as the scheduler says when it starts.
func (p *process) unbatched() []string {
	p.t.Helper()
	raw, err := os.ReadFile(p.logFile)
	if err != nil {
		p.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, "Disabling signatures for profile") {
			_, profile, _ := strings.Cut(line, `profile="`)
			profile, _, _ = strings.Cut(profile, `"`)
			out = append(out, profile)
		}
	}
	return out
}

func lastLines(file string, n int) string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// ownServer starts an API server for one test.
func ownServer(t *testing.T, options ...apiserver.Option) (*rest.Config, client.Client) {
	t.Helper()
	config := apiserver.Start(t, options...)
	api, err := prepare(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return config, api
}

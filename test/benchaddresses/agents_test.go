// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/fleet"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// writesPolicy has the API server log every request that writes.
const writesPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch, delete, deletecollection]
- level: None
`

// BenchmarkWrites starts and ends pods on three nodes, each with an agent, and
// counts what the agents write, as the API server's audit log tells it.
func BenchmarkWrites(b *testing.B) {
	const nodeCount, networks = 3, 2
	pods := figures.Setting(b, "PODS", 1000)
	dir := b.TempDir()
	policy, log := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	fleet.Must(b, os.WriteFile(policy, []byte(writesPolicy), 0o600))
	c := fleet.Start(b, apiserver.WithAPIServerFlag("audit-policy-file", policy), apiserver.WithAPIServerFlag("audit-log-path", log))
	c.Furnish(b, networks, networks)
	built := fleet.BuildPrograms(b)
	var nodes []*fleet.Node
	for i := range nodeCount {
		nodes = append(nodes, c.StartNode(b, built, fmt.Sprintf("worker%d", i), networks))
	}
	began := time.Now()
	run := c.StartPods(b, nodes, pods, networks)
	c.AwaitStatus(b, pods)
	started := agentWrites(b, log)
	figures.Say(b, "writes: %d pods with %d networks on %d nodes started in %.1fs; by the agents since their own start: %s", pods, networks, nodeCount, time.Since(began).Seconds(), started)
	c.EndPods(b, run)
	time.Sleep(10 * time.Second) // the agents space their writes out
	ended := agentWrites(b, log)
	figures.Say(b, "writes: with the end of all pods: %s", ended)
	figure(b, "writes-per-pod", float64(started.total())/float64(pods))
	figure(b, "writes-per-pod-started-and-ended", float64(ended.total())/float64(pods))
}

// writes counts requests by verb, resource and answer.
type writes map[string]int

func (w writes) total() int {
	sum := 0
	for _, count := range w {
		sum += count
	}
	return sum
}

// String lists the counts.
func (w writes) String() string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(w)) {
		parts = append(parts, fmt.Sprintf("%s: %d", kind, w[kind]))
	}
	return strings.Join(parts, ", ")
}

// agentWrites reads an audit log. Every request to write counts, also one that
// was refused; those of everybody but the agents do not.
func agentWrites(b *testing.B, path string) writes {
	b.Helper()
	file, err := os.Open(path)
	fleet.Must(b, err)
	defer func() { _ = file.Close() }()
	out := writes{}
	for lines := bufio.NewReader(file); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return out
		}
		var event struct {
			Verb             string
			ImpersonatedUser struct{ Username string }
			ObjectRef        struct{ Resource, Subresource string }
			ResponseStatus   struct{ Code int }
		}
		fleet.Must(b, json.Unmarshal([]byte(line), &event))
		if event.ImpersonatedUser.Username != fleet.AgentUser {
			continue
		}
		out[strings.TrimSuffix(fmt.Sprintf("%s %s/%s", event.Verb, event.ObjectRef.Resource, event.ObjectRef.Subresource), "/")+fmt.Sprintf(" %d", event.ResponseStatus.Code)]++
	}
}

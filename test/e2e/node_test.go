// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// onNode runs a command on a node of the cluster and returns what it printed.
func onNode(ctx context.Context, node, stdin string, command ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", append([]string{"exec", "--interactive", node}, command...)...) // #nosec G204 -- the tests' own commands
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s on %s: %w: %s", strings.Join(command, " "), node, err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// mustOnNode is onNode for what has to succeed.
func mustOnNode(t testing.TB, node string, command ...string) string {
	t.Helper()
	out, err := onNode(t.Context(), node, "", command...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ipLink is one link as `ip -j addr` shows it.
type ipLink struct {
	IfName    string `json:"ifname"`
	Address   string `json:"address"`
	MTU       int    `json:"mtu"`
	OperState string `json:"operstate"`
	AddrInfo  []struct {
		Local     string `json:"local"`
		PrefixLen int    `json:"prefixlen"`
		Scope     string `json:"scope"`
	} `json:"addr_info"`
	Stats struct {
		RX struct {
			Bytes uint64 `json:"bytes"`
		} `json:"rx"`
		TX struct {
			Bytes   uint64 `json:"bytes"`
			Packets uint64 `json:"packets"`
		} `json:"tx"`
	} `json:"stats64"`
}

// global are the addresses that reach beyond the link, as address/length.
func (l *ipLink) global() []string {
	var out []string
	for _, a := range l.AddrInfo {
		if a.Scope == "global" {
			out = append(out, fmt.Sprintf("%s/%d", a.Local, a.PrefixLen))
		}
	}
	slices.Sort(out)
	return out
}

func parseLinks(t testing.TB, text string) map[string]ipLink {
	t.Helper()
	links, err := decodeLinks(text)
	if err != nil {
		t.Fatal(err)
	}
	return links
}

func decodeLinks(text string) (map[string]ipLink, error) {
	var links []ipLink
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		return nil, fmt.Errorf("reading the output of ip: %w\n%s", err, text)
	}
	out := make(map[string]ipLink, len(links))
	for _, l := range links {
		if l.IfName != "" {
			out[l.IfName] = l
		}
	}
	return out, nil
}

// nodeLinks are the names of the links that netplane made on a node for pods.
func nodeLinks(t testing.TB, node string) []string {
	t.Helper()
	var out []string
	for name := range parseLinks(t, mustOnNode(t, node, "ip", "-j", "link")) {
		if strings.HasPrefix(name, "npv") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func getNodeNetwork(ctx context.Context, node string) (*v1alpha1.NodeNetwork, error) {
	nn := &v1alpha1.NodeNetwork{}
	if err := env.client.Get(ctx, client.ObjectKey{Name: node}, nn); err != nil {
		return nil, fmt.Errorf("reading NodeNetwork %s: %w", node, err)
	}
	return nn, nil
}

// nicFor is the NIC by which a node backs a physical network; "" if it does not.
func nicFor(nn *v1alpha1.NodeNetwork, physical string) (nic string, ready bool) {
	for _, p := range nn.Status.PhysicalNetworks {
		if p.Name == physical && len(p.Interfaces) > 0 {
			return p.Interfaces[0], p.Ready
		}
	}
	return "", false
}

// backing are the nodes that back a physical network, with the NIC that does.
func backing(t *testing.T, physical string) map[string]string {
	t.Helper()
	var list v1alpha1.NodeNetworkList
	if err := env.client.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for i := range list.Items {
		if nic, ready := nicFor(&list.Items[i], physical); ready {
			out[list.Items[i].Name] = nic
		}
	}
	return out
}

const mapFile = "/etc/netplane/physical-network-map.yaml"

// setMap replaces a node's map until the test ends.
func setMap(t *testing.T, node, text string) {
	t.Helper()
	before := mustOnNode(t, node, "cat", mapFile)
	write := func(ctx context.Context, text string) error {
		_, err := onNode(ctx, node, text, "sh", "-c", "cat >"+mapFile+".new && mv "+mapFile+".new "+mapFile)
		return err
	}
	t.Cleanup(func() {
		if err := write(context.WithoutCancel(t.Context()), before); err != nil {
			t.Errorf("restoring the map: %v", err)
		}
	})
	if err := write(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

// nodeIPv4 is a node's address in the cluster's own network.
func nodeIPv4(t *testing.T, name string) string {
	t.Helper()
	var node corev1.Node
	if err := env.client.Get(t.Context(), client.ObjectKey{Name: name}, &node); err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool {
		return a.Type == corev1.NodeInternalIP && !strings.Contains(a.Address, ":")
	})
	if at < 0 {
		t.Fatalf("node %s has no IPv4 address", name)
	}
	return node.Status.Addresses[at].Address
}

// freeze stops a program of a node as it is, until the function is called or the
// test ends.
func freeze(t *testing.T, node, program string) (resume func()) {
	t.Helper()
	mustOnNode(t, node, "pkill", "-STOP", "-x", program)
	resume = sync.OnceFunc(func() {
		if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "pkill", "-CONT", "-x", program); err != nil {
			t.Errorf("letting %s of %s run again: %v", program, node, err)
		}
	})
	t.Cleanup(resume)
	return resume
}

// setLink sets a NIC down until the test ends, or up again.
func setLink(t *testing.T, node, nic, state string) {
	t.Helper()
	mustOnNode(t, node, "ip", "link", "set", nic, state)
	if state == "down" {
		t.Cleanup(func() {
			if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "ip", "link", "set", nic, "up"); err != nil {
				t.Errorf("setting the NIC up again: %v", err)
			}
		})
	}
}

// agentPod is the agent's pod on a node; nil if there is none.
func agentPod(ctx context.Context, node string) (*corev1.Pod, error) {
	var list corev1.PodList
	if err := env.client.List(ctx, &list, client.InNamespace(v1alpha1.SystemNamespace),
		client.MatchingLabels{"app.kubernetes.io/name": v1alpha1.AgentAppLabel}, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return nil, fmt.Errorf("listing agents: %w", err)
	}
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			return &list.Items[i], nil
		}
	}
	if len(list.Items) > 0 {
		return &list.Items[0], nil
	}
	return nil, nil
}

// changeAgents edits the DaemonSet of the agents.
func changeAgents(ctx context.Context, t *testing.T, edit func(*appsv1.DaemonSetSpec)) {
	t.Helper()
	eventually(t, 10*time.Second, "changing the DaemonSet", func() error {
		var ds appsv1.DaemonSet
		if err := env.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.AgentAppLabel}, &ds); err != nil {
			return err
		}
		edit(&ds.Spec)
		return env.client.Update(ctx, &ds)
	})
}

// stopAgent removes the agent from one node, and leaves all others alone. The
// function that it returns brings it back; the end of the test does so too.
func stopAgent(t *testing.T, node string) (start func()) {
	t.Helper()
	var before appsv1.DaemonSetSpec
	changeAgents(t.Context(), t, func(spec *appsv1.DaemonSetSpec) {
		before = *spec.DeepCopy()
		// OnDelete, or every other agent would be restarted too.
		spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
		spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpNotIn, Values: []string{node}}},
			}}},
		}}
	})
	started := false
	start = func() {
		if started {
			return
		}
		started = true
		ctx := context.WithoutCancel(t.Context())
		changeAgents(ctx, t, func(spec *appsv1.DaemonSetSpec) {
			spec.UpdateStrategy, spec.Template = before.UpdateStrategy, before.Template
		})
		awaitAgent(t, node)
	}
	t.Cleanup(start)
	eventually(t, 60*time.Second, "the agent of "+node+" to be gone", func() error {
		pod, err := agentPod(t.Context(), node)
		if err == nil && pod != nil {
			err = fmt.Errorf("pod %s is there", pod.Name)
		}
		return err
	})
	return start
}

// awaitAgent waits until the agent of a node is ready, and known to be.
func awaitAgent(t *testing.T, node string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	eventually(t, 90*time.Second, "the agent of "+node+" to be ready", func() error {
		pod, err := agentPod(ctx, node)
		if err != nil {
			return err
		}
		if pod == nil || !podReady(pod) {
			return fmt.Errorf("the agent's pod is not ready")
		}
		return conditionIs(ctx, node, v1alpha1.ConditionAgentReady, "True")
	})
}

func conditionIs(ctx context.Context, node, kind, want string) error {
	nn, err := getNodeNetwork(ctx, node)
	if err != nil {
		return err
	}
	for _, c := range nn.Status.Conditions {
		if c.Type == kind {
			if string(c.Status) != want {
				return fmt.Errorf("NodeNetwork %s: condition %s is %s (%s: %s), want %s", node, kind, c.Status, c.Reason, c.Message, want)
			}
			return nil
		}
	}
	return fmt.Errorf("NodeNetwork %s has no condition %s", node, kind)
}

// killAgent ends the agent of a node as the kernel's OOM killer would.
func killAgent(t *testing.T, node string) {
	t.Helper()
	out, err := onNode(t.Context(), node, "", "sh", "-c", "kill -9 $(pgrep -x netplane-agent)")
	if err != nil {
		t.Logf("no agent to kill on %s: %v %s", node, err, out)
	}
}

// replaceAgent kills the agent of a node and waits until the next one is ready.
// Its pod goes with it, because kubelet starts a container that dies often later
// and later, and meanwhile the condition AgentReady may still tell of the old one.
func replaceAgent(t *testing.T, node string) {
	t.Helper()
	before, err := agentPod(t.Context(), node)
	if err != nil || before == nil {
		t.Fatalf("finding the agent of %s: %v", node, err)
	}
	killAgent(t, node)
	if err := env.client.Delete(t.Context(), before, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 90*time.Second, "the next agent of "+node+" to be ready", func() error {
		pod, err := agentPod(t.Context(), node)
		if err == nil && (pod == nil || pod.UID == before.UID || !podReady(pod)) {
			err = fmt.Errorf("it is not")
		}
		return err
	})
	awaitAgent(t, node)
}

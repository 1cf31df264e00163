// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

const ourConf = "00-netplane.conflist"

// wrapped tells which of the nodes have our CNI configuration.
func wrapped(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, node := range append(workers(), env.node("control-plane")) {
		if strings.Contains(mustOnNode(t, node, "ls", "/etc/cni/net.d"), ourConf) {
			out = append(out, node)
		}
	}
	return out
}

// uninstall runs a step of the script that users run.
func uninstall(t *testing.T, step string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../../hack/uninstall.sh", step, "kind-"+env.name).CombinedOutput() // #nosec G204 -- a script of this repository
	return string(out), err
}

// killedRestore runs the script's first step, and kills it when it has told the
// agents but not waited for them.
func killedRestore(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	script := exec.CommandContext(ctx, "../../hack/uninstall.sh", "restore", "kind-"+env.name) // #nosec G204 -- a script of this repository
	if err := script.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 90*time.Second, "the agents to be told", func() error {
		var agents appsv1.DaemonSet
		if err := env.client.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.AgentAppLabel}, &agents); err != nil {
			return err
		}
		if args := agents.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--uninstall") {
			return fmt.Errorf("they run with %v", args)
		}
		return nil
	})
	cancel()
	if err := script.Wait(); err == nil {
		t.Error("the script ended before it could be killed")
	}
}

// reinstall applies the base again, and waits until all runs as before.
func reinstall(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Minute)
	defer cancel()
	for _, args := range [][]string{
		{"apply", "--server-side", "--force-conflicts", "-k", "../../manifests/base"},
		{"--namespace=netplane-system", "rollout", "status", "deployment/netplane-scheduler", "--timeout=120s"},
		{"--namespace=netplane-system", "rollout", "status", "daemonset/netplane-agent", "--timeout=240s"},
	} {
		if out, err := kubectl(ctx, args...); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}
	if err := poll(ctx, env.checkParts); err != nil {
		t.Error(err)
	}
}

// TestUninstallCutsNoPodOff: the nodes have their own CNI configuration back
// while pods with networks run on; what they leave is collected; and netplane
// can be installed again.
func TestUninstallCutsNoPodOff(t *testing.T) {
	ns := namespace(t)
	onEth0 := run(t, newPod(ns, "on-eth0", "management@eth0", on(env.node("worker"))))
	left := run(t, newPod(ns, "left", "data", on(env.node("worker"))))
	right := run(t, newPod(ns, "right", "data", on(env.node("worker3"))))
	if got := wrapped(t); len(got) != 4 {
		t.Fatalf("nodes with our configuration: %v, want all", got)
	}
	t.Cleanup(func() { reinstall(t) })
	killedRestore(t)
	if out, err := uninstall(t, "restore"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := wrapped(t); len(got) != 0 {
		t.Errorf("nodes with our configuration: %v, want none", got)
	}

	t.Run("pods with networks run on", func(t *testing.T) {
		enter(t, left).mustReach(t, addressIn(t, right, "data", false), webPort, "right")
		enter(t, left).mustReach(t, addressIn(t, right, "data", true), webPort, "right")
		if out, err := execInPod(t.Context(), onEth0, "cat", "/tmp/www/index.html"); err != nil || strings.TrimSpace(out) != "on-eth0" {
			t.Errorf("kubectl exec: %q, %v", out, err)
		}
		// The node's own way to it, as kubelet's probes use it.
		out, err := onNode(t.Context(), onEth0.Spec.NodeName, "", "curl", "--silent", "--max-time", "5", fmt.Sprintf("http://%s:%d/", onEth0.Status.PodIP, webPort))
		if err != nil || strings.TrimSpace(out) != "on-eth0" {
			t.Errorf("from its node it answers %q, %v", out, err)
		}
	})
	t.Run("new pods have the cluster's network, or wait", func(t *testing.T) {
		plain := run(t, newPod(ns, "plain", ""))
		if !strings.HasPrefix(plain.Status.PodIP, "10.244.") {
			t.Errorf("a pod without networks has %s", plain.Status.PodIP)
		}
		waits := createPod(t, newPod(ns, "waits", "data"))
		always(t, 5*time.Second, "a pod with networks waits", func() error {
			if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(waits), waits); err != nil {
				return err
			}
			if waits.Spec.NodeName != "" {
				return fmt.Errorf("it was placed on %s", waits.Spec.NodeName)
			}
			return nil
		})
	})
	t.Run("netplane stays while they run", func(t *testing.T) {
		out, err := uninstall(t, "remove")
		if err == nil || !strings.Contains(out, ns+"/left") {
			t.Errorf("the script does not say which pods are left: %v: %s", err, out)
		}
	})
	t.Run("what pods leave is collected", func(t *testing.T) {
		for _, pod := range []*corev1.Pod{left, onEth0} {
			if err := env.client.Delete(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 150*time.Second, "their addresses and the host's routes to be gone", func() error {
			nn, err := getNodeNetwork(t.Context(), left.Spec.NodeName)
			if err != nil {
				return err
			}
			if len(nn.Status.Held) > 0 {
				return fmt.Errorf("addresses are held: %+v", nn.Status.Held)
			}
			if routes := mustOnNode(t, onEth0.Spec.NodeName, "ip", "route", "show", onEth0.Status.PodIP); routes != "" {
				return fmt.Errorf("the node has a route: %s", routes)
			}
			return nil
		})
	})
	reinstall(t)
	if got := wrapped(t); len(got) != 4 {
		t.Errorf("installed again, nodes with our configuration: %v, want all", got)
	}
	again := &corev1.Pod{}
	again.Namespace, again.Name = ns, "waits"
	awaitRunning(t, again, 60*time.Second)
	checkAttached(t, again, map[string]string{"net1": netData})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package netcontroller_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/program"
)

func TestController(t *testing.T) {
	config := apiserver.Start(t)
	c := install(t, config)
	p := start(t, build(t), config)

	t.Run("serves health and metrics and holds the lease", func(t *testing.T) { testServes(t, c, p) })
	t.Run("a Network says what it lacks, in order, until it is Ready", func(t *testing.T) { testReadiness(t, c) })
	t.Run("of two Networks that overlap the newer one waits", func(t *testing.T) { testOverlap(t, c) })
	t.Run("counts nodes and addresses", func(t *testing.T) { testCounts(t, c, p) })
	t.Run("addresses run low before they are exhausted", func(t *testing.T) { testAvailability(t, c) })
	t.Run("a Network that is deleted waits for its pods, then for its blocks", func(t *testing.T) { testFinalizer(t, c) })
	t.Run("a pod gets a fixed address, for which the Network waits", func(t *testing.T) { testFixed(t, c, p) })
	t.Run("a Network that is deleted says which pods it waits for", func(t *testing.T) { testHolding(t, c) })
	t.Run("AgentReady follows the agent's pod and the Node", func(t *testing.T) { testAgentReady(t, c) })
	t.Run("node labels follow the NICs", func(t *testing.T) { testLabels(t, c) })
	t.Run("blocks of a Node that is gone are freed", func(t *testing.T) { testNodeGone(t, c) })
	t.Run("blocks of a fenced Node are freed with its pods", func(t *testing.T) { testFenced(t, c) })
	t.Run("a block in which another node's pods live is marked", func(t *testing.T) { testContested(t, c) })
	t.Run("blocks of an unknown Network are asked back from a living node", func(t *testing.T) { testUnknownNetwork(t, c) })
}

func testServes(t *testing.T, c client.Client, p *controller) {
	for _, path := range []string{"/healthz", "/readyz"} {
		eventually(t, path, func(context.Context) error {
			_, err := program.Fetch(p.health, path)
			return err
		})
	}
	eventually(t, "the lease", func(ctx context.Context) error {
		var lease coordinationv1.Lease
		key := client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: "netplane-controller"}
		if err := c.Get(ctx, key, &lease); err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
			return errors.New("nobody holds it")
		}
		return nil
	})
	eventually(t, "/metrics", func(context.Context) error {
		body, err := program.Fetch(p.metrics, "/metrics")
		if err == nil && !strings.Contains(body, "controller_runtime_reconcile_total") {
			err = errors.New("no controller metrics")
		}
		return err
	})
}

func testReadiness(t *testing.T, c client.Client) {
	network := addNetwork(t, c, "readiness", "rd", "10.1.0.0/24")
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonUnknownPhysicalNetwork, `no PhysicalNetwork "rd"`)
	if !controllerutil.ContainsFinalizer(network, v1alpha1.FinalizerNetwork) {
		t.Errorf("finalizers = %v, want %s", network.Finalizers, v1alpha1.FinalizerNetwork)
	}
	physical := addPhysical(t, c, "rd")
	awaitCondition(t, c, physical, v1alpha1.ConditionReady, "False", v1alpha1.ReasonNoInterface)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonNoNode, `no node maps a NIC to physical network "rd"`)

	addNode(t, c, "rd-node")
	report(t, c, "rd-node", backs("rd", "eth1", true))
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady, "pods may be placed on it")
	awaitCondition(t, c, physical, v1alpha1.ConditionReady, "True", v1alpha1.ReasonNodesReady)

	report(t, c, "rd-node", backs("rd", "eth1", false))
	awaitCondition(t, c, physical, v1alpha1.ConditionReady, "False", v1alpha1.ReasonInterfacesDown)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady, "no node can serve it now")
	if want := (v1alpha1.NodeCounts{Ready: 0, Total: 1}); network.Status.Nodes != want {
		t.Errorf("nodes = %+v, want %+v", network.Status.Nodes, want)
	}

	tagged := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "tagged"},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "rd", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.1.1.0/24", VLAN: 5},
	}
	create(t, c, tagged)
	awaitCondition(t, c, tagged, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady)

	odd := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "odd"},
		Spec: v1alpha1.NetworkSpec{
			PhysicalNet: "rd", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.1.2.0/24",
			PluginConfig: &apiextensionsv1.JSON{Raw: []byte(`{"mode": "l3"}`)},
		},
	}
	create(t, c, odd)
	awaitCondition(t, c, odd, v1alpha1.ConditionReady, "False", v1alpha1.ReasonInvalidSpec, "spec.pluginConfig.mode", "write one of bridge")
}

func testOverlap(t *testing.T, c client.Client) {
	addPhysical(t, c, "ov")
	addNode(t, c, "ov-node")
	report(t, c, "ov-node", backs("ov", "eth1", true))
	older := addNetwork(t, c, "ov-a", "ov", "10.2.0.0/16")
	newer := addNetwork(t, c, "ov-b", "ov", "10.2.3.0/24")
	awaitCondition(t, c, older, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady)
	awaitCondition(t, c, newer, v1alpha1.ConditionReady, "False", v1alpha1.ReasonSubnetOverlap,
		"10.2.3.0/24", `older Network "ov-a"`, "10.2.0.0/16")
	eventually(t, "an event that says so", func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := c.List(ctx, &list); err != nil {
			return err
		}
		for i := range list.Items {
			e := &list.Items[i]
			if e.Regarding.Name == "ov-b" && e.Reason == v1alpha1.ReasonSubnetOverlap && e.Type == corev1.EventTypeWarning {
				return nil
			}
		}
		return fmt.Errorf("none among %d events", len(list.Items))
	})
	remove(t, c, older)
	awaitCondition(t, c, newer, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady)
}

func testCounts(t *testing.T, c client.Client, p *controller) {
	addPhysical(t, c, "co")
	node := addNode(t, c, "co-node")
	addNode(t, c, "co-down")
	report(t, c, "co-down", backs("co", "eth1", false))
	status := backs("co", "eth1", true)
	status.Held = []v1alpha1.HeldAddresses{{Network: "counts", Count: 2}, {Network: "counts", Count: 1, PodUID: "gone"}}
	report(t, c, "co-node", status)

	network := addNetwork(t, c, "counts", "co", "10.3.0.0/24")
	addBlock(t, c, network, "10.3.0.16/28", node)
	addBlock(t, c, network, "10.3.0.32/28", node)
	one := addPod(t, c, "counts-1", node.Name, "counts")
	addPod(t, c, "counts-2", node.Name, "counts,counts")
	addPod(t, c, "counts-unbound", "", "counts")
	nodes := v1alpha1.NodeCounts{Ready: 1, Total: 2}
	awaitNetwork(t, c, "counts", nodes, v1alpha1.AddressCounts{Capacity: 238, Claimed: 30, Used: 6})
	remove(t, c, one)
	awaitNetwork(t, c, "counts", nodes, v1alpha1.AddressCounts{Capacity: 238, Claimed: 30, Used: 5})
	awaitCondition(t, c, network, v1alpha1.ConditionTight, "False", v1alpha1.ReasonBlocksLeft)

	tight := addNetwork(t, c, "tight", "co", "10.4.0.0/27") // two blocks
	addBlock(t, c, tight, "10.4.0.0/28", node)
	awaitCondition(t, c, tight, v1alpha1.ConditionTight, "True", v1alpha1.ReasonFewBlocksLeft, "additionalSubnets")

	eventually(t, "metrics", func(context.Context) error {
		body, err := program.Fetch(p.metrics, "/metrics")
		if err != nil {
			return err
		}
		for _, line := range []string{
			`netplane_network_addresses{kind="used",network="counts"} 5`,
			`netplane_network_nodes{kind="ready",network="counts"} 1`,
			`netplane_physical_network_nodes{kind="total",physical_network="co"} 2`,
		} {
			if !strings.Contains(body, line+"\n") {
				return fmt.Errorf("no line %s", line)
			}
		}
		return nil
	})
}

func testFinalizer(t *testing.T, c client.Client) {
	addPhysical(t, c, "fi")
	node := addNode(t, c, "fi-node")
	report(t, c, "fi-node", backs("fi", "eth1", true))
	network := addNetwork(t, c, "finalizer", "fi", "10.5.0.0/24")
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "True", v1alpha1.ReasonReady)
	pod := addPod(t, c, "fi-pod", node.Name, "finalizer@eth0")
	block := addBlock(t, c, network, "10.5.0.0/28", node)

	remove(t, c, network)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonTerminating,
		"1 pod on it (default/fi-pod)", "1 address block")
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(block), block); err != nil || !block.DeletionTimestamp.IsZero() {
		t.Errorf("block while a pod lives: deletionTimestamp %v, error %v; want neither", block.DeletionTimestamp, err)
	}
	remove(t, c, pod)
	eventually(t, "the block is asked back", func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(block), block); err != nil {
			return err
		}
		if block.DeletionTimestamp.IsZero() {
			return errors.New("no deletionTimestamp")
		}
		return nil
	})
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonTerminating, "waits for 1 address block")
	letGo(t, c, block)
	awaitGone(t, c, network)
}

// The rules by which addresses change hands have tests of their own: here it is
// shown that the program follows them, and that a Network waits for it.
func testFixed(t *testing.T, c client.Client, p *controller) {
	addPhysical(t, c, "fx")
	node := addNode(t, c, "fx-node")
	report(t, c, node.Name, backs("fx", "eth1", true))
	network := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: "fixed"},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "fx", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.9.0.0/24", BlockSize: 16, StaticRange: "10.9.0.128/25"},
	}
	create(t, c, network)
	pod := addPod(t, c, "fx-pod", node.Name, "- {name: fixed, ips: [10.9.0.200]}")
	claim := &v1alpha1.IPClaim{ObjectMeta: metav1.ObjectMeta{Name: "fixed.10.9.0.200"}}
	eventually(t, "the claim", func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(claim), claim); err != nil {
			return err
		}
		if claim.Status.PodUID != pod.UID || claim.Status.NodeName != node.Name {
			return fmt.Errorf("status %+v", claim.Status)
		}
		return nil
	})
	eventually(t, "the metric", func(context.Context) error {
		body, err := program.Fetch(p.metrics, "/metrics")
		if line := `netplane_ipclaims{network="fixed",reason="Bound"} 1`; err == nil && !strings.Contains(body, line+"\n") {
			err = fmt.Errorf("no line %s", line)
		}
		return err
	})
	remove(t, c, network)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonTerminating, "1 pod on it (default/fx-pod)", "1 IPClaim")
	held := backs("fx", "eth1", true)
	held.Held = []v1alpha1.HeldAddresses{{Network: "fixed", Count: 1, PodUID: pod.UID, Fixed: true}}
	report(t, c, node.Name, held)
	remove(t, c, pod)
	awaitCondition(t, c, network, v1alpha1.ConditionReady, "False", v1alpha1.ReasonTerminating, "waits for 1 IPClaim of addresses that are not given back")
	report(t, c, node.Name, backs("fx", "eth1", true))
	awaitGone(t, c, claim)
	awaitGone(t, c, network)
}

// letGo takes the finalizer off, as the node's agent does.
func letGo(t *testing.T, c client.Client, block *v1alpha1.IPBlock) {
	t.Helper()
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := c.Patch(t.Context(), block, patch); client.IgnoreNotFound(err) != nil {
		t.Fatalf("letting go of %s: %v", block.Name, err)
	}
}

func awaitGone(t *testing.T, c client.Client, object client.Object) {
	t.Helper()
	eventually(t, object.GetName()+" is gone", func(ctx context.Context) error {
		err := c.Get(ctx, client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there with finalizers %v: %w", object.GetFinalizers(), err)
	})
}

func testAgentReady(t *testing.T, c client.Client) {
	node := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "ar-node"}}
	create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}, node.DeepCopy())
	setNodeReady(t, c, node.Name, corev1.ConditionTrue)
	await := func(status metav1.ConditionStatus, reason string, parts ...string) {
		t.Helper()
		awaitCondition(t, c, node, v1alpha1.ConditionAgentReady, status, reason, parts...)
	}
	stranger := aPod(metav1.NamespaceDefault, "no-agent", node.Name)
	stranger.Labels = map[string]string{"app.kubernetes.io/name": v1alpha1.AgentAppLabel}
	create(t, c, stranger)
	setPodReady(t, c, stranger, corev1.ConditionTrue)
	await("False", v1alpha1.ReasonNoAgentPod, "DaemonSet netplane-agent")

	// What the agent itself wrote must stay the agent's.
	status := backs("ar", "eth7", true)
	status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ConditionInventoryReady, Status: "True", Reason: v1alpha1.ReasonInventoryRead, LastTransitionTime: metav1.Now(),
	}}
	report(t, c, node.Name, status)
	agent := addAgent(t, c, node.Name)
	await("True", v1alpha1.ReasonAgentPodReady)
	report(t, c, node.Name, status)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(node), node); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{v1alpha1.ConditionAgentReady, v1alpha1.ConditionInventoryReady} {
		if !meta.IsStatusConditionTrue(node.Status.Conditions, kind) {
			t.Errorf("conditions %+v lack %s after both have written", node.Status.Conditions, kind)
		}
	}
	if len(node.Status.PhysicalNetworks) != 1 {
		t.Errorf("physicalNetworks = %+v, want what the agent wrote", node.Status.PhysicalNetworks)
	}

	setPodReady(t, c, agent, corev1.ConditionFalse)
	await("False", v1alpha1.ReasonAgentPodNotReady, "netplane-system/agent-ar-node")
	setPodReady(t, c, agent, corev1.ConditionTrue)
	await("True", v1alpha1.ReasonAgentPodReady)
	setNodeReady(t, c, node.Name, corev1.ConditionUnknown)
	await("False", v1alpha1.ReasonAgentPodNotReady, "the Node is not Ready")
	setNodeReady(t, c, node.Name, corev1.ConditionTrue)
	await("True", v1alpha1.ReasonAgentPodReady)
	remove(t, c, agent)
	await("False", v1alpha1.ReasonNoAgentPod)
}

func testLabels(t *testing.T, c client.Client) {
	node := addNode(t, c, "la-node")
	await := func(want map[string]string) {
		t.Helper()
		want = maps.Clone(want)
		want["kubernetes.io/hostname"] = "la-node"
		eventually(t, "labels", func(ctx context.Context) error {
			if err := c.Get(ctx, client.ObjectKeyFromObject(node), node); err != nil {
				return err
			}
			if diff := cmp.Diff(want, node.Labels); diff != "" {
				return fmt.Errorf("(-want +got):\n%s", diff)
			}
			return nil
		})
	}
	const key = "physical.netplane.io/la"
	report(t, c, node.Name, backs("la", "eth1", true))
	await(map[string]string{key: "eth1"})
	report(t, c, node.Name, backs("la", "eth2", false))
	await(map[string]string{key: "eth2"})
	byHand := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"physical.netplane.io/la":null,"physical.netplane.io/lie":"eth9"}}}`))
	if err := c.Patch(t.Context(), node.DeepCopy(), byHand); err != nil {
		t.Fatal(err)
	}
	await(map[string]string{key: "eth2"})
	report(t, c, node.Name, v1alpha1.NodeNetworkStatus{})
	await(map[string]string{})
	report(t, c, node.Name, backs("la", "eth1", true))
	await(map[string]string{key: "eth1"})
	remove(t, c, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node.Name}})
	await(map[string]string{})
}

func testNodeGone(t *testing.T, c client.Client) {
	addPhysical(t, c, "ng")
	dead, alive := addNode(t, c, "ng-dead"), addNode(t, c, "ng-alive")
	for _, name := range []string{dead.Name, alive.Name} {
		report(t, c, name, backs("ng", "eth1", true))
	}
	network := addNetwork(t, c, "nodegone", "ng", "10.6.0.0/24")
	free := addNetwork(t, c, "nodegone-free", "ng", "10.7.0.0/24")
	held := addBlock(t, c, network, "10.6.0.0/28", dead)
	empty := addBlock(t, c, free, "10.7.0.0/28", dead)
	living := addBlock(t, c, network, "10.6.0.16/28", alive)
	pod := addPod(t, c, "ng-pod", dead.Name, "nodegone")

	remove(t, c, dead, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: dead.Name}})
	never(t, "an address freed before the grace is over", 5*time.Second, func(ctx context.Context) error {
		return c.Get(ctx, client.ObjectKeyFromObject(empty), empty)
	})
	awaitGone(t, c, empty)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(held), held); err != nil {
		t.Errorf("the block of a pod that still stands: %v", err)
	}
	remove(t, c, pod)
	awaitGone(t, c, held)
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(living), living); err != nil || !living.DeletionTimestamp.IsZero() {
		t.Errorf("a living node's block: deletionTimestamp %v, error %v; want neither", living.DeletionTimestamp, err)
	}
}

func testContested(t *testing.T, c client.Client) {
	addPhysical(t, c, "ct")
	network := addNetwork(t, c, "contested", "ct", "10.41.0.0/24")
	block := addBlock(t, c, network, "10.41.0.16/28", addNode(t, c, "contested-0"))
	addNode(t, c, "contested-1")
	conflict := v1alpha1.BlockConflict{Block: block.Name, OtherNode: "contested-0", Addresses: 1, Since: metav1.Now(), Pods: []string{"default/a"}}
	awaitMark := func(want string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the mark %q", want), func(ctx context.Context) error {
			if err := c.Get(ctx, client.ObjectKeyFromObject(block), block); err != nil {
				return err
			}
			if got := block.Annotations[v1alpha1.AnnotationContestedBy]; got != want {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	report(t, c, "contested-1", v1alpha1.NodeNetworkStatus{Conflicts: []v1alpha1.BlockConflict{conflict}})
	awaitMark("contested-1")
	report(t, c, "contested-1", v1alpha1.NodeNetworkStatus{})
	awaitMark("")
}

func testUnknownNetwork(t *testing.T, c client.Client) {
	node := addNode(t, c, "un-node")
	unknown := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "unknown", UID: "no such uid"}}
	block := addBlock(t, c, unknown, "10.8.0.0/28", node)
	eventually(t, "the block is asked back", func(ctx context.Context) error {
		if err := c.Get(ctx, client.ObjectKeyFromObject(block), block); err != nil {
			return err
		}
		if block.DeletionTimestamp.IsZero() {
			return errors.New("no deletionTimestamp")
		}
		return nil
	})
	never(t, "the finalizer is the living agent's", 2*time.Second, func(ctx context.Context) error {
		return c.Get(ctx, client.ObjectKeyFromObject(block), block)
	})
	letGo(t, c, block)
	awaitGone(t, c, block)
}

func TestMissingCRDsAreNamedWithTheCure(t *testing.T) {
	config := apiserver.Start(t, apiserver.WithoutCRDs())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, build(t), "--kubeconfig="+kubeconfig(t, config, "")).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("the program ended with %v, want exit code 1\n%s", err, out)
	}
	for _, part := range []string{
		"networks.netplane.io", "physicalnetworks.netplane.io", "nodenetworks.netplane.io", "ipblocks.netplane.io", "ipclaims.netplane.io",
		"kubectl apply -k manifests/base",
	} {
		if !strings.Contains(string(out), part) {
			t.Errorf("the message lacks %q:\n%s", part, out)
		}
	}
}

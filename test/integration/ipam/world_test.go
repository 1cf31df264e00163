// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// patience bounds what must happen soon, on a machine that does much else.
const patience = 60 * time.Second

// rollbackPause is long enough for an API server that is asked for little.
const rollbackPause = 3 * time.Second

// world is the admin's view of the API server.
type world struct {
	client.Client
	t *testing.T
}

func newWorld(t *testing.T) *world {
	t.Helper()
	admin, err := apiserver.NewClient(apiServer)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Client: admin, t: t}
	t.Cleanup(w.clear)
	return w
}

// clear leaves nothing to the next test. The agents have ended by then, so
// that nobody takes finalizers off.
func (w *world) clear() {
	ctx := context.Background()
	var blocks v1alpha1.IPBlockList
	var networks v1alpha1.NetworkList
	w.must(w.List(ctx, &blocks), w.List(ctx, &networks))
	var held []client.Object
	for i := range blocks.Items {
		held = append(held, &blocks.Items[i])
	}
	for i := range networks.Items {
		held = append(held, &networks.Items[i])
	}
	for _, obj := range held {
		obj.SetFinalizers(nil)
		w.must(client.IgnoreNotFound(w.Update(ctx, obj)), client.IgnoreNotFound(w.Delete(ctx, obj)))
	}
	now := client.GracePeriodSeconds(0)
	w.must(w.DeleteAllOf(ctx, &v1alpha1.NodeNetwork{}), w.DeleteAllOf(ctx, &corev1.Node{}),
		w.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(metav1.NamespaceDefault), now))
}

// quick is the server's configuration without client-side throttling.
func quick() *rest.Config {
	out := rest.CopyConfig(apiServer)
	out.QPS = -1
	return out
}

// must fails the test on any of the errors.
func (w *world) must(errs ...error) {
	w.t.Helper()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits until check finds nothing to say.
func (w *world) eventually(what string, check func() string) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %s", what, complaint)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// network makes a Network that is Ready.
func (w *world) network(name, subnet string) *v1alpha1.Network {
	w.t.Helper()
	out := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.NetworkSpec{PhysicalNet: "phy-" + name, Plugin: v1alpha1.PluginMacvlan, Subnet: v1alpha1.CIDR(subnet), BlockSize: 8},
	}
	w.must(w.Create(w.t.Context(), out))
	out.Status.ObservedGeneration = out.Generation
	out.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, LastTransitionTime: metav1.Now(),
	}}
	w.must(w.Status().Update(w.t.Context(), out))
	return out
}

// node makes a Node whose NIC backs the network, and no other test's.
func (w *world) node(name, network string) {
	w.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	offer := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.must(w.Create(w.t.Context(), node), w.Create(w.t.Context(), offer))
	offer.Status.PhysicalNetworks = []v1alpha1.NodePhysicalNetwork{{Name: "phy-" + network, Interfaces: []string{"eth1"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp}}
	w.must(w.Status().Update(w.t.Context(), offer))
}

func (w *world) nodeUID(name string) types.UID {
	w.t.Helper()
	var node corev1.Node
	w.must(w.Get(w.t.Context(), client.ObjectKey{Name: name}, &node))
	return node.UID
}

// pods binds count pods to the node, each of which asks for the network once.
func (w *world) pods(node, network string, count int) []ipam.Owner {
	w.t.Helper()
	var out []ipam.Owner
	for range count {
		out = append(out, w.pod(node, network, 1)...)
	}
	return out
}

// pod binds a pod to the node that asks for so many interfaces in the network.
func (w *world) pod(node, network string, interfaces int) []ipam.Owner {
	w.t.Helper()
	asked := strings.TrimSuffix(strings.Repeat(network+",", interfaces), ",")
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: network + "-" + node + "-", Annotations: map[string]string{v1alpha1.AnnotationNetworks: asked}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	w.must(w.Create(w.t.Context(), pod))
	var out []ipam.Owner
	for i := range interfaces {
		out = append(out, ipam.Owner{PodUID: string(pod.UID), PodNamespace: pod.Namespace, PodName: pod.Name, ContainerID: "sandbox-of-" + pod.Name, IfName: fmt.Sprintf("net%d", i+1)})
	}
	return out
}

func podOf(owner ipam.Owner) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: owner.PodNamespace, Name: owner.PodName}}
}

// blocks lists the network's blocks as "cidr node", with "!" if deleted.
func (w *world) blocks(network string) []string {
	w.t.Helper()
	var list v1alpha1.IPBlockList
	w.must(w.List(w.t.Context(), &list, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: network}))
	var out []string
	for i := range list.Items {
		text := string(list.Items[i].Spec.CIDR) + " " + list.Items[i].Spec.NodeName
		if list.Items[i].DeletionTimestamp != nil {
			text += " !"
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// agent is the address management of one node.
type agent struct {
	*ipam.Manager
	w       *world
	node    string
	dir     string
	stop    func()
	writing sync.Mutex   // held by Create
	lose    atomic.Int32 // so many replies to Create get lost
	creates atomic.Int32
}

// agent starts a node's address management, with the caches of a real agent.
func (w *world) agent(node string) *agent {
	w.t.Helper()
	a := &agent{w: w, node: node, dir: w.t.TempDir()}
	a.start()
	w.t.Cleanup(func() { a.stop() })
	return a
}

func (a *agent) start() {
	a.w.t.Helper()
	w := a.w
	skip := true
	mgr, err := ctrl.NewManager(quick(), ctrl.Options{
		Scheme:     w.Scheme(),
		Metrics:    server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &skip},
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:          {Field: fields.OneTermEqualSelector("metadata.name", a.node)},
			&v1alpha1.NodeNetwork{}: {Field: fields.OneTermEqualSelector("metadata.name", a.node)},
			&corev1.Pod{}:           {Field: fields.OneTermEqualSelector("spec.nodeName", a.node)},
			&v1alpha1.IPBlock{}:     {Field: fields.OneTermEqualSelector(v1alpha1.FieldIPBlockNodeName, a.node)},
		}},
	})
	w.must(err)
	a.Manager = ipam.New(ipam.Config{JournalPath: filepath.Join(a.dir, "addresses.journal"), Wait: patience})
	claimer := ipam.NewClaimer(
		ipam.ClaimerConfig{NodeName: a.node, IdleGrace: time.Second, ScarceGrace: time.Second, DrainGrace: 100 * time.Millisecond,
			RollbackPause: rollbackPause, VersionFile: a.versionFile()},
		ipam.ClaimerDeps{Client: lossy{mgr.GetClient(), a}, Live: mgr.GetAPIReader(), Manager: a.Manager})
	w.must(claimer.SetupWithManager(mgr))
	w.must(a.Replay(func(ipam.Lease) bool { return true }))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	a.stop = func() {
		cancel()
		if err := errors.Join(<-ended, a.Close()); err != nil {
			w.t.Errorf("stopping the agent of %s: %v", a.node, err)
		}
		a.stop = func() {}
	}
}

func (a *agent) versionFile() string { return filepath.Join(a.dir, "apiserver.json") }

// remember has the next agent believe that IPBlocks had come to this version.
func (a *agent) remember(version string) {
	a.w.t.Helper()
	a.w.must(os.WriteFile(a.versionFile(), fmt.Appendf(nil, `{"resourceVersions":{"IPBlock":%q}}`, version), 0o600))
}

// pauseAssertions holds the agent's writes up while do runs.
func (a *agent) pauseAssertions(do func()) {
	a.writing.Lock()
	defer a.writing.Unlock()
	do()
}

// lossy loses replies to Create.
type lossy struct {
	client.Client
	agent *agent
}

func (l lossy) Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error {
	l.agent.creates.Add(1)
	l.agent.writing.Lock()
	defer l.agent.writing.Unlock()
	if err := l.Client.Create(ctx, obj, opts...); err != nil {
		return err
	}
	if l.agent.lose.Add(-1) >= 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// reserve takes an address for the pod.
func (a *agent) reserve(owner ipam.Owner, network string) string {
	a.w.t.Helper()
	leases, err := a.Reserve(a.w.t.Context(), []ipam.Ask{{Owner: owner, Network: network}})
	a.w.must(err)
	return leases[0].Address.String()
}

// held lists the blocks that the agent knows to be its own, as world.blocks does.
func (a *agent) held(network string) []string {
	var out []string
	for _, b := range a.Usage(network).Blocks {
		text := b.Prefix.String() + " " + a.node
		if b.Closed {
			text += " !"
		}
		out = append(out, text)
	}
	return out
}

// agree waits until agents and API server say the same of a network's blocks.
func (w *world) agree(network string, agents ...*agent) []string {
	w.t.Helper()
	var blocks []string
	w.eventually("agents and API server agree", func() string {
		blocks = w.blocks(network)
		var held []string
		for _, a := range agents {
			held = append(held, a.held(network)...)
		}
		slices.Sort(held)
		if !slices.Equal(blocks, held) {
			return fmt.Sprintf("the API server has\n%s\nthe agents have\n%s", strings.Join(blocks, "\n"), strings.Join(held, "\n"))
		}
		return ""
	})
	return blocks
}

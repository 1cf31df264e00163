// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

// world is one run: a cluster with Networks and nodes of its own in the API
// server that all runs share.
type world struct {
	t          *testing.T
	ctx        context.Context
	name       string
	plan       *plan
	connection *rest.Config
	scheme     *runtime.Scheme
	mapping    meta.RESTMapper
	api        client.Client // the admin's, and kubelets': it knows no faults
	log        *history
	dir        string
	outage     *gate
	frozen     *gate
	rewinds    atomic.Int64 // raised before and after the API server is set back
	kernel     *kernel
	networks   []string
	nodes      []*node
	byName     map[string]*node
	controller *controller

	mu         sync.Mutex
	wires      []*line // of the agents and the controller that live
	violations []string
	failed     atomic.Bool
	pods       atomic.Int64
}

func newWorld(t *testing.T, p *plan, name string) *world {
	t.Helper()
	log, err := newHistory(name)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, log: log, ctx: t.Context(), name: name, plan: p, connection: apiServer.Config, dir: t.TempDir(), outage: newGate(), frozen: newGate(), byName: map[string]*node{}}
	w.kernel = newKernel(w.violate)
	w.scheme = runtime.NewScheme()
	w.check(errors.Join(corev1.AddToScheme(w.scheme), v1alpha1.AddToScheme(w.scheme), addEvents(w.scheme)))
	quick := rest.CopyConfig(w.connection)
	quick.QPS = -1
	if w.mapping, err = mapping(quick, w.scheme); err != nil {
		t.Fatal(err)
	}
	w.api, err = client.New(quick, client.Options{Scheme: w.scheme, Mapper: w.mapping})
	w.check(err)
	return w
}

// mapping spares every life of every agent the discovery of the API.
func mapping(config *rest.Config, scheme *runtime.Scheme) (meta.RESTMapper, error) {
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	mapper, err := apiutil.NewDynamicRESTMapper(config, transport)
	if err != nil {
		return nil, err
	}
	kinds := []schema.GroupKind{{Kind: "Node"}, {Kind: "Pod"}}
	for kind := range scheme.KnownTypes(v1alpha1.SchemeGroupVersion) {
		kinds = append(kinds, v1alpha1.SchemeGroupVersion.WithKind(kind).GroupKind())
	}
	for _, kind := range kinds { // while there is an API server
		if _, err := mapper.RESTMapping(kind); err != nil && !meta.IsNoMatchError(err) {
			return nil, err
		}
	}
	return mapper, nil
}

func (w *world) mapper(*rest.Config, *http.Client) (meta.RESTMapper, error) { return w.mapping, nil }

// violate notes what must never be.
func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.log.printf("VIOLATION: %s", text)
	w.failed.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, text)
}

// check notes an error of the harness itself.
func (w *world) check(err error) {
	if err != nil {
		w.violate("the harness failed: %v", err)
	}
}

// admin does what must succeed as soon as there is an API server.
func (w *world) admin(what string, do func() error) {
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(poll) {
		if err = do(); err == nil {
			return
		}
	}
	w.violate("%s: %v", what, err)
}

// createOrGet creates an object, or reads the one that an earlier attempt made.
func (w *world) createOrGet(obj client.Object) error {
	err := w.api.Create(w.ctx, obj)
	if apierrors.IsAlreadyExists(err) {
		return w.api.Get(w.ctx, client.ObjectKeyFromObject(obj), obj)
	}
	return err
}

// start makes the cluster, and waits until all agents serve.
func (w *world) start() {
	w.admin("creating the physical network", func() error {
		return w.createOrGet(&v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: w.physical()}})
	})
	for i, size := range w.plan.networks {
		name := fmt.Sprintf("%s-net%d", w.name, i)
		w.networks = append(w.networks, name)
		w.admin("creating a Network", func() error {
			return w.createOrGet(&v1alpha1.Network{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: v1alpha1.NetworkSpec{
					PhysicalNet: w.physical(), Plugin: v1alpha1.PluginMacvlan, BlockSize: int32(size.blockSize),
					Subnet: v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/%d", 60+i, size.bits)),
				},
			})
		})
	}
	var group sync.WaitGroup
	for i := range w.plan.nodes {
		name := fmt.Sprintf("%s-n%02d", w.name, i)
		n := &node{
			world: w, name: name, journal: filepath.Join(w.dir, name, "addresses.journal"),
			blocks: newGate(), records: map[string]attachState{}, spool: map[string]bool{},
		}
		w.nodes, w.byName[name] = append(w.nodes, n), n
	}
	w.controller = startController(w)
	for i, n := range w.nodes {
		group.Go(func() {
			n.register()
			a, err := n.startAgent()
			w.check(err)
			if err == nil {
				// All agents claim at once now, and more than there are blocks.
				first := w.plan.nodes[i][0].tear
				a.line.lose(int(first>>16%2), int(first>>17%2))
			}
			if n.agent = a; err == nil && !a.isServing(patience) {
				w.violate("the agent of %s does not start", n.name)
			}
		})
	}
	group.Wait()
}

func (w *world) physical() string { return physicalNet + "-" + w.name }

// uidOf is the UID of a machine's Node, or empty.
func (w *world) uidOf(name string) types.UID { return w.byName[name].currentUID() }

// createPod has a pod bound to the node. Of a Tight Network the scheduler
// claims a block first, most times.
func (w *world) createPod(n *node, s *step) *pod {
	p := &pod{name: fmt.Sprintf("%s-p%d", n.name, w.pods.Add(1))}
	for _, i := range s.nets {
		p.nets = append(p.nets, w.networks[i])
	}
	annotation := strings.Join(p.nets, ",")
	if s.tear%4 > 0 {
		for i := range w.networks {
			w.scheduleBlock(n, i, p)
		}
	}
	w.admin("creating a pod", func() error {
		obj := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: p.name, Annotations: map[string]string{v1alpha1.AnnotationNetworks: annotation}},
			Spec:       corev1.PodSpec{NodeName: n.name, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}
		err := w.createOrGet(obj)
		p.uid = obj.UID
		return err
	})
	return p
}

// deletePod deletes a pod's object at once, as a kubelet does in the end.
func (w *world) deletePod(p *pod) {
	p.gone.Store(true)
	w.admin("deleting a pod", func() error {
		return client.IgnoreNotFound(w.api.Delete(w.ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: p.name}}, client.GracePeriodSeconds(0)))
	})
}

// scheduleBlock is the scheduler's part: where a Network is Tight and the node
// has no address left, it creates a block before it binds the pod.
func (w *world) scheduleBlock(n *node, index int, p *pod) {
	need := 0
	for _, name := range p.nets {
		if name == w.networks[index] {
			need++
		}
	}
	if need == 0 {
		return
	}
	var network v1alpha1.Network
	var blocks v1alpha1.IPBlockList
	w.admin("looking at a Network", func() error {
		return errors.Join(w.api.Get(w.ctx, client.ObjectKey{Name: w.networks[index]}, &network),
			w.api.List(w.ctx, &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNodeName: n.name}))
	})
	if !meta.IsStatusConditionTrue(network.Status.Conditions, v1alpha1.ConditionTight) {
		return
	}
	plan, err := addressing.NewPlan(network.Name, &network.Spec)
	if err != nil {
		w.check(err)
		return
	}
	free := -need
	for i := range blocks.Items {
		if b := &blocks.Items[i]; b.Spec.Network == network.Name && b.DeletionTimestamp == nil && b.Spec.NodeUID == n.currentUID() {
			free += plan.Capacity(prefixOf(b))
		}
	}
	for _, sb := range n.slots {
		for _, name := range podNets(sb) {
			if name == network.Name {
				free--
			}
		}
	}
	for prefix := range plan.Candidates(n.name + p.name) {
		if free >= 0 {
			return
		}
		block := &v1alpha1.IPBlock{
			ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, prefix), Finalizers: []string{v1alpha1.FinalizerIPBlock}},
			Spec: v1alpha1.IPBlockSpec{
				Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(prefix.String()), NodeName: n.name, NodeUID: n.currentUID(),
			},
		}
		if err := w.api.Create(w.ctx, block); err == nil {
			w.log.printf("scheduler: %s for %s", prefix, n.name)
			free += plan.Capacity(prefix)
		}
	}
}

func podNets(sb *sandboxed) []string {
	if sb == nil {
		return nil
	}
	return sb.pod.nets
}

// live runs the nodes' steps and the cluster's events.
func (w *world) live() {
	var busy, group sync.WaitGroup
	over := make(chan struct{})
	for i, n := range w.nodes {
		busy.Add(1)
		group.Go(func() {
			n.run(w.plan.nodes[i])
			busy.Done()
			n.idle(over)
		})
	}
	for _, e := range w.plan.events {
		time.Sleep(e.pause)
		w.log.printf("event %s", e.kind)
		w.happen(e)
	}
	busy.Wait()
	close(over)
	group.Wait()
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	perf "k8s.io/kubernetes/test/integration/scheduler_perf"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/app"
)

const (
	requeueNamespace = "requeue"
	// scarce is a network of one block on one node.
	scarce         = "scarce"
	scarcePhysical = "phy-scarce"
	scarceNode     = "scarce"
	scarceSize     = 8
	// patienceEach bounds the wait for one pod: the scheduler looks at pods
	// that no event woke only after five minutes.
	patienceEach = 30 * time.Second
	// lag is how long the scheduler may take to see what was written before a
	// pod is made that must not be placed yet.
	lag = 30 * time.Millisecond
)

// BenchmarkRequeue measures how long after its cause a waiting pod is bound,
// by the scheduler as it is shipped, in a cluster of NODES nodes.
func BenchmarkRequeue(b *testing.B) {
	s := read(b)
	config := launch(b)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	r, err := newRequeue(ctx, config, s, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	tell(b, "%d nodes with %d networks are made, the scheduler runs", s.nodes, heapNetworks)
	var all []time.Duration
	for _, kind := range []struct {
		name string
		once func(context.Context, int) (time.Duration, error)
	}{
		{"pod-deleted", r.podDeleted},
		{"address-released", r.addressReleased},
		{"nic-up", r.nicUp},
	} {
		var took []time.Duration
		for i := range s.requeues {
			d, err := kind.once(ctx, i)
			if err != nil {
				b.Fatalf("%s, time %d: %v", kind.name, i+1, err)
			}
			took = append(took, d)
		}
		tell(b, "%s: p50 %.1f ms, p99 %.1f ms, max %.1f ms", kind.name, quantile(took, 0.5), quantile(took, 0.99), quantile(took, 1))
		all = append(all, took...)
	}
	tell(b, "all: p50 %.1f ms, max %.1f ms", quantile(all, 0.5), quantile(all, 1))
	tell(b, "bench scheduler requeue-p99-ms %.1f", quantile(all, 0.99))
}

// quantile in milliseconds, by the nearest rank.
func quantile(values []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	rank := min(len(sorted)-1, max(0, int(q*float64(len(sorted))+0.999999)-1))
	return sorted[rank].Seconds() * 1000
}

// requeue is a cluster in which pods wait for the one block of a network.
type requeue struct {
	api   client.Client
	offer *v1alpha1.NodeNetwork
	pods  *watched
	ended chan error
}

func newRequeue(ctx context.Context, config *rest.Config, s settings, dir string) (*requeue, error) {
	api, err := newClient(config)
	if err != nil {
		return nil, err
	}
	nodes, err := makeNodes(ctx, api, s.nodes-1)
	if err != nil {
		return nil, err
	}
	if err := makeOffers(ctx, api, nodes, heapNetworks, 64); err != nil {
		return nil, err
	}
	r := &requeue{api: api, pods: newWatched(), ended: make(chan error, 1)}
	if err := r.makeScarce(ctx); err != nil {
		return nil, err
	}
	selector := fields.OneTermEqualSelector("metadata.namespace", requeueNamespace)
	if err := watchPods(ctx, config, selector, r.pods.saw); err != nil {
		return nil, err
	}
	return r, r.startScheduler(ctx, config, dir)
}

// makeScarce makes the network, the node and its block.
func (r *requeue) makeScarce(ctx context.Context) error {
	if err := r.api.Create(ctx, &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: requeueNamespace}}); err != nil {
		return err
	}
	node, err := makeNode(ctx, r.api, scarceNode)
	if err != nil {
		return err
	}
	subnet := netip.MustParsePrefix("192.168.0.0/16")
	network, err := makeNetwork(ctx, r.api, scarce, scarcePhysical, subnet, scarceSize)
	if err != nil {
		return err
	}
	if err := makeBlock(ctx, r.api, network, node, nthBlock(subnet, 1, scarceSize)); err != nil {
		return err
	}
	r.offer = &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: scarceNode}}
	if err := r.api.Create(ctx, r.offer); err != nil {
		return err
	}
	fillOffer(r.offer, heapNetworks)
	r.offer.Status.PhysicalNetworks = append(r.offer.Status.PhysicalNetworks, v1alpha1.NodePhysicalNetwork{
		Name: scarcePhysical, Interfaces: []string{"eth9"}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp,
	})
	return r.publish(ctx)
}

// startScheduler runs the command with the shipped configuration.
func (r *requeue) startScheduler(ctx context.Context, config *rest.Config, dir string) error {
	raw, err := os.ReadFile(shipped)
	if err != nil {
		return err
	}
	var content map[string]any
	if err := yaml.Unmarshal(raw, &content); err != nil {
		return fmt.Errorf("reading %s: %w", shipped, err)
	}
	connection, ok := content["clientConnection"].(map[string]any)
	if !ok {
		return errors.New("the shipped configuration has no clientConnection")
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	connection["kubeconfig"] = kubeconfig
	file, err := write(dir, "config.yaml", content)
	if err != nil {
		return err
	}
	if err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"bench": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"bench": {ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}},
		Contexts:       map[string]*clientcmdapi.Context{"bench": {Cluster: "bench", AuthInfo: "bench"}},
		CurrentContext: "bench",
	}, kubeconfig); err != nil {
		return err
	}
	cmd := app.NewCommand()
	// A process sets logging up once, and scheduler_perf has done it already: it must be told the same again.
	cmd.SetArgs([]string{"--config=" + file, "--leader-elect=false", "--secure-port=0", fmt.Sprintf("--v=%d", perf.DefaultLoggingVerbosity)})
	cmd.SetContext(ctx)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	go func() { r.ended <- cmd.Execute() }()
	return nil
}

func (r *requeue) publish(ctx context.Context) error {
	if err := r.api.Status().Update(ctx, r.offer); err != nil {
		return fmt.Errorf("publishing the NodeNetwork: %w", err)
	}
	return nil
}

// hold says that the agent holds so many of the block's addresses for nobody.
func (r *requeue) hold(ctx context.Context, count int32) error {
	r.offer.Status.Held = nil
	if count > 0 {
		r.offer.Status.Held = []v1alpha1.HeldAddresses{{Network: scarce, Count: count}}
	}
	return r.publish(ctx)
}

// setNIC says whether the NIC of the scarce network is up.
func (r *requeue) setNIC(ctx context.Context, up bool) error {
	backing := &r.offer.Status.PhysicalNetworks[len(r.offer.Status.PhysicalNetworks)-1]
	backing.Ready, backing.Reason = up, v1alpha1.ReasonInterfaceUp
	if !up {
		backing.Reason = v1alpha1.ReasonInterfaceDown
	}
	return r.publish(ctx)
}

// podDeleted frees an address by deleting the pod that has it.
func (r *requeue) podDeleted(ctx context.Context, i int) (time.Duration, error) {
	// One address is left, which the first pod takes.
	if err := r.hold(ctx, scarceSize-2); err != nil {
		return 0, err
	}
	holder, err := r.create(ctx, fmt.Sprintf("holder-%d", i))
	if err != nil {
		return 0, err
	}
	if _, err := r.await(ctx, holder.Name, bound); err != nil {
		return 0, err
	}
	return r.time(ctx, fmt.Sprintf("heir-%d", i), func() error { return r.remove(ctx, holder.Name) })
}

// addressReleased frees an address as an agent does that held it for a pod
// that is gone.
func (r *requeue) addressReleased(ctx context.Context, i int) (time.Duration, error) {
	if err := r.hold(ctx, scarceSize-1); err != nil {
		return 0, err
	}
	return r.time(ctx, fmt.Sprintf("released-%d", i), func() error { return r.hold(ctx, scarceSize-2) })
}

// nicUp brings the NIC back.
func (r *requeue) nicUp(ctx context.Context, i int) (time.Duration, error) {
	if err := errors.Join(r.hold(ctx, 0), r.setNIC(ctx, false)); err != nil {
		return 0, err
	}
	return r.time(ctx, fmt.Sprintf("nic-%d", i), func() error { return r.setNIC(ctx, true) })
}

// time makes a pod that cannot be placed yet, applies the cure and returns how
// long after that the pod was bound. The pod is gone at the end.
func (r *requeue) time(ctx context.Context, name string, cure func() error) (time.Duration, error) {
	time.Sleep(lag)
	if _, err := r.create(ctx, name); err != nil {
		return 0, err
	}
	if _, err := r.await(ctx, name, refused); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cure(); err != nil {
		return 0, err
	}
	at, err := r.await(ctx, name, bound)
	if err != nil {
		return 0, err
	}
	return at.Sub(start), r.remove(ctx, name)
}

func (r *requeue) create(ctx context.Context, name string) (*v1.Pod, error) {
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: requeueNamespace, Annotations: map[string]string{v1alpha1.AnnotationNetworks: scarce},
		},
		Spec: v1.PodSpec{
			SchedulerName:                 v1alpha1.DefaultSchedulerName,
			Containers:                    []v1.Container{{Name: "c", Image: "none"}},
			Tolerations:                   []v1.Toleration{{Operator: v1.TolerationOpExists}},
			TerminationGracePeriodSeconds: new(int64),
		},
	}
	if err := r.api.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("creating pod %s: %w", name, err)
	}
	return pod, nil
}

func (r *requeue) remove(ctx context.Context, name string) error {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: requeueNamespace}}
	if err := r.api.Delete(ctx, pod, client.GracePeriodSeconds(0)); err != nil {
		return fmt.Errorf("deleting pod %s: %w", name, err)
	}
	return nil
}

// await returns when the pod was first seen in a state.
func (r *requeue) await(ctx context.Context, name string, want state) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patienceEach)
	defer cancel()
	seen := r.pods.moment(name, want)
	select {
	case <-seen.happened:
		return seen.at, nil
	case err := <-r.ended:
		return time.Time{}, fmt.Errorf("the scheduler ended: %w", err)
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("pod %s was not %s within %s", name, want, patienceEach)
	}
}

// state is what a pod is waited for.
type state string

const (
	refused state = "refused by the scheduler"
	bound   state = "bound"
)

// watched remembers when pods were first seen in a state.
type watched struct {
	mu      sync.Mutex
	moments map[string]*moment // by pod and state
}

// moment is when something happened; at is set before happened is closed.
type moment struct {
	once     sync.Once
	happened chan struct{}
	at       time.Time
}

func newWatched() *watched { return &watched{moments: map[string]*moment{}} }

func (w *watched) moment(pod string, s state) *moment {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := pod + " " + string(s)
	if w.moments[key] == nil {
		w.moments[key] = &moment{happened: make(chan struct{})}
	}
	return w.moments[key]
}

func (w *watched) saw(pod *v1.Pod, now time.Time) {
	if pod.Spec.NodeName != "" {
		w.moment(pod.Name, bound).is(now)
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == v1.PodScheduled && c.Reason == v1.PodReasonUnschedulable {
			w.moment(pod.Name, refused).is(now)
		}
	}
}

func (m *moment) is(now time.Time) {
	m.once.Do(func() {
		m.at = now
		close(m.happened)
	})
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchendpoints

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/figures"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/objects"
)

const (
	namespace = "default"
	// podsPerNode leaves room in a node's block, of which the first usable
	// address is the node's own.
	podsPerNode = 100
	blockSize   = 128
	// writers is how many requests are under way at a time.
	writers = 16
	// patience bounds every wait.
	patience = 10 * time.Minute
)

// networkNames are the networks that pods and Services are on.
func networkNames() []string { return []string{"net1", "net2"} }

// world is an API server with Networks, nodes and pods, and no controller.
type world struct {
	client.Client
	config   *rest.Config
	networks []*v1alpha1.Network
}

func start(b *testing.B, nodes int) *world {
	b.Helper()
	w := &world{config: apiserver.Start(b, apiserver.WithAPIServerFlag("service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112"))}
	w.config.QPS = -1
	var err error
	w.Client, err = apiserver.NewClient(w.config)
	must(b, err)
	must(b, w.Create(b.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default"}}))
	for i, name := range networkNames() {
		network := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.NetworkSpec{
			PhysicalNet: "phy-" + name, Plugin: v1alpha1.PluginMacvlan, BlockSize: blockSize,
			Subnet: v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/12", 16*(i+1))), Subnet6: v1alpha1.CIDR(fmt.Sprintf("fd00:10:%d::/64", i)),
		}}
		must(b, w.Create(b.Context(), network))
		w.networks = append(w.networks, network)
	}
	parallel(b, nodes, w.makeNode)
	return w
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// parallel does so many things, writers at a time.
func parallel(b *testing.B, count int, do func(context.Context, int) error) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(writers)
	for i := range count {
		group.Go(func() error { return do(ctx, i) })
	}
	must(b, group.Wait())
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

// blockAt is a network's i-th block; addressAt an address in it.
func (w *world) blockAt(network, i int) netip.Prefix {
	base := netip.MustParsePrefix(string(w.networks[network].Spec.Subnet)).Addr()
	return netip.PrefixFrom(advance(base, i*blockSize), 32-7)
}

func advance(addr netip.Addr, by int) netip.Addr {
	four := addr.As4()
	value := uint32(four[0])<<24 | uint32(four[1])<<16 | uint32(four[2])<<8 | uint32(four[3])
	value += uint32(by) // #nosec G115 -- below 2^20
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)})
}

// makeNode makes a node with a NIC for each network and a block of it.
func (w *world) makeNode(ctx context.Context, i int) error {
	node := objects.Node(nodeName(i))
	node.Labels[corev1.LabelTopologyZone] = fmt.Sprintf("zone-%d", i%3)
	if err := w.Create(ctx, node); err != nil {
		return fmt.Errorf("making node %d: %w", i, err)
	}
	links := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	if err := w.Create(ctx, links); err != nil {
		return fmt.Errorf("making NodeNetwork %d: %w", i, err)
	}
	for n, network := range w.networks {
		links.Status.PhysicalNetworks = append(links.Status.PhysicalNetworks, objects.NodeNetworkStatus(network.Spec.PhysicalNet).PhysicalNetworks...)
		block := w.blockAt(n, i+1) // the first has the network's own address
		if err := w.Create(ctx, objects.Block(network, block.String(), node.Name, node.UID)); err != nil {
			return fmt.Errorf("making block %s: %w", block, err)
		}
	}
	if err := w.Status().Update(ctx, links); err != nil {
		return fmt.Errorf("setting NodeNetwork %d: %w", i, err)
	}
	return nil
}

// podName is the i-th pod of an app; its node and addresses follow from i.
func podName(app string, i int) string { return fmt.Sprintf("%s-%05d", app, i) }

// makePod makes a running pod, on the networks if it shall be.
func (w *world) makePod(ctx context.Context, app string, i int, onNetworks, ready bool) error {
	node, place := i/podsPerNode, i%podsPerNode
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: podName(app, i), Namespace: namespace, Labels: map[string]string{"app": app, "pod-template-hash": "5d8f9c7b6d"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: app + "-5d8f9c7b6d", UID: "7d3b6c1e-8e0a-4a57-9a43-0d6c0a3f8e11"}},
		},
		Spec: corev1.PodSpec{
			NodeName: nodeName(node), ServiceAccountName: "default",
			Containers: []corev1.Container{{Name: "c", Image: "example.org/team/web:v1.2.3", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}},
		},
	}
	if onNetworks {
		var attachments []podnetworks.Attachment
		for n, network := range w.networks {
			plan, err := addressing.NewPlan(network.Name, &network.Spec)
			if err != nil {
				return err
			}
			four := advance(w.blockAt(n, node+1).Addr(), 2+place)
			attachment := podnetworks.Attachment{Name: network.Name, Interface: fmt.Sprintf("net%d", n+1)}
			for _, address := range plan.Interface(four) {
				attachment.IPs = append(attachment.IPs, address.Addr().String())
			}
			attachments = append(attachments, attachment)
		}
		text, err := podnetworks.FormatStatus(attachments)
		if err != nil {
			return err
		}
		pod.Annotations = map[string]string{
			v1alpha1.AnnotationNetworks: "net1,net2", v1alpha1.AnnotationNetworkStatus: text,
			v1alpha1.AnnotationNetworkStatusSandbox: fmt.Sprintf("%064d", i), v1alpha1.AnnotationAttached: "net1=1,net2=1",
		}
		pod.Spec.SchedulerName = v1alpha1.DefaultSchedulerName
	}
	if err := w.Create(ctx, pod); err != nil {
		return fmt.Errorf("making pod %d: %w", i, err)
	}
	eth0 := advance(netip.MustParseAddr("10.128.0.0"), i).String()
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: eth0, PodIPs: []corev1.PodIP{{IP: eth0}, {IP: fmt.Sprintf("fd00:244::%x", i+1)}}, HostIP: "172.18.0.2",
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, readiness(ready, time.Now()),
		},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "c", Ready: ready, Started: &ready, Image: "example.org/team/web:v1.2.3",
			ImageID:     "example.org/team/web@sha256:0d6c0a3f8e117d3b6c1e8e0a4a579a430d6c0a3f8e117d3b6c1e8e0a4a579a43",
			ContainerID: fmt.Sprintf("containerd://%064d", i), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
		}},
	}
	if err := w.Status().Update(ctx, pod); err != nil {
		return fmt.Errorf("setting pod %d: %w", i, err)
	}
	return nil
}

func readiness(ready bool, at time.Time) corev1.PodCondition {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(at.Truncate(time.Second))}
}

// setReady is what kubelet writes when a pod's readiness changes.
func (w *world) setReady(ctx context.Context, app string, i int, ready bool, at time.Time) error {
	condition := readiness(ready, at)
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q,"lastTransitionTime":%q}]}}`, condition.Status, condition.LastTransitionTime.UTC().Format(time.RFC3339))
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: podName(app, i)}}
	if err := w.Status().Patch(ctx, pod, client.RawPatch("application/strategic-merge-patch+json", []byte(patch))); err != nil {
		return fmt.Errorf("setting pod %d ready=%v: %w", i, ready, err)
	}
	return nil
}

// makeService makes a headless Service of both families over an app's pods: on
// the networks, or Kubernetes' own.
func (w *world) makeService(ctx context.Context, name, app string, onNetworks bool) error {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	if onNetworks {
		svc.Annotations = map[string]string{v1alpha1.AnnotationNetworks: "net1,net2"}
		svc.Spec.Selector[v1alpha1.SelectorEndpointsKey] = v1alpha1.SelectorEndpointsByNetwork
	}
	return w.Create(ctx, svc)
}

func await(b *testing.B, what string, ok func() error) {
	b.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

func figure(b *testing.B, name string, value float64) {
	b.Helper()
	figures.Figure(b, "endpoints", name, value)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// crds are what is shipped.
	crds = "../../manifests/crds"
	// writers is the number of requests at a time.
	writers = 16
)

// installCRDs makes the API server serve netplane's kinds; it may do so already.
func installCRDs(config *rest.Config) error {
	if _, err := envtest.InstallCRDs(config, envtest.CRDInstallOptions{Paths: []string{crds}, ErrorIfPathMissing: true}); err != nil {
		return fmt.Errorf("installing the CRDs: %w", err)
	}
	return nil
}

// newClient returns a client that knows netplane's kinds and is never throttled.
func newClient(config *rest.Config) (client.Client, error) {
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), v1alpha1.AddToScheme(types)); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, "" // scheduler_perf's says protobuf, which CRDs have not
	api, err := client.New(config, client.Options{Scheme: types})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return api, nil
}

// networkName names the networks of the benchmark, from 0.
func networkName(i int) string { return fmt.Sprintf("net-%d", i) }

func physicalName(i int) string { return fmt.Sprintf("phy-net%d", i) }

// subnet is a /9 for each network: 5,000 blocks of 1,024 addresses.
func subnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(10 + i/2), byte(i % 2 * 128), 0, 0}), 9)
}

// makeNetwork makes a Network and says that it is ready, as the controller would.
func makeNetwork(ctx context.Context, api client.Client, name, physical string, subnet netip.Prefix, blockSize int32) (*v1alpha1.Network, error) {
	network := &v1alpha1.Network{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.NetworkSpec{
			PhysicalNet: physical, Plugin: v1alpha1.PluginMacvlan, Subnet: v1alpha1.CIDR(subnet.String()), BlockSize: blockSize,
		},
	}
	if err := api.Create(ctx, network); err != nil {
		return nil, fmt.Errorf("creating network %s: %w", name, err)
	}
	meta.SetStatusCondition(&network.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady})
	if err := api.Status().Update(ctx, network); err != nil {
		return nil, fmt.Errorf("setting network %s ready: %w", name, err)
	}
	return network, nil
}

// makeOffers gives each node a NodeNetwork with one NIC, and one block, for
// each of the first count networks, as agents and controller would.
func makeOffers(ctx context.Context, api client.Client, nodes []v1.Node, count int, blockSize int32) error {
	var networks []*v1alpha1.Network
	for i := range count {
		network, err := makeNetwork(ctx, api, networkName(i), physicalName(i), subnet(i), blockSize)
		if err != nil {
			return err
		}
		networks = append(networks, network)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range nodes {
		group.Go(func() error {
			if err := makeNodeNetwork(ctx, api, &nodes[i], count); err != nil {
				return err
			}
			for j, network := range networks {
				if err := makeBlock(ctx, api, network, &nodes[i], nthBlock(subnet(j), i, blockSize)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// nthBlock is the block with this index in a subnet.
func nthBlock(subnet netip.Prefix, index int, size int32) netip.Prefix {
	first := subnet.Addr().As4()
	offset := uint32(index) * uint32(size)
	base := uint32(first[0])<<24 | uint32(first[1])<<16 | uint32(first[2])<<8 | uint32(first[3])
	base += offset
	bits := 32
	for n := size; n > 1; n /= 2 {
		bits--
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(base >> 24), byte(base >> 16), byte(base >> 8), byte(base)}), bits)
}

func makeBlock(ctx context.Context, api client.Client, network *v1alpha1.Network, node *v1.Node, cidr netip.Prefix) error {
	block := &v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: addressing.BlockName(network.Name, cidr), Finalizers: []string{v1alpha1.FinalizerIPBlock}},
		Spec: v1alpha1.IPBlockSpec{
			Network: network.Name, NetworkUID: network.UID, CIDR: v1alpha1.CIDR(cidr.String()), NodeName: node.Name, NodeUID: node.UID,
		},
	}
	if err := api.Create(ctx, block); err != nil {
		return fmt.Errorf("creating block %s: %w", block.Name, err)
	}
	return nil
}

// makeNodeNetwork writes as much as a real agent does: size counts, too.
func makeNodeNetwork(ctx context.Context, api client.Client, node *v1.Node, physical int) error {
	offer := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{
		Name:            node.Name,
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
	}}
	if err := api.Create(ctx, offer); err != nil {
		return fmt.Errorf("creating NodeNetwork %s: %w", node.Name, err)
	}
	fillOffer(offer, physical)
	if err := api.Status().Update(ctx, offer); err != nil {
		return fmt.Errorf("filling NodeNetwork %s: %w", node.Name, err)
	}
	return nil
}

func fillOffer(offer *v1alpha1.NodeNetwork, physical int) {
	status := &offer.Status
	for i := range physical {
		nic := fmt.Sprintf("eth%d", i+1)
		status.Interfaces = append(status.Interfaces, v1alpha1.NodeInterfaceStatus{
			Name: nic, MAC: fmt.Sprintf("02:00:00:00:00:%02x", i), MTU: 9000, SpeedMbps: 25000,
			PCIAddress: fmt.Sprintf("0000:3b:00.%d", i), Driver: "mlx5_core", State: v1alpha1.OperStateUp,
		})
		status.PhysicalNetworks = append(status.PhysicalNetworks, v1alpha1.NodePhysicalNetwork{
			Name: physicalName(i), Interfaces: []string{nic}, Ready: true, Reason: v1alpha1.ReasonInterfaceUp,
		})
		status.Mapped += fmt.Sprintf("%s=%s,", physicalName(i), nic)
	}
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionAgentReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAgentPodReady,
		Message: "the agent's pod is ready",
	})
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionInventoryReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonInventoryRead,
	})
}

// makeNode makes a Node that never runs out of anything but addresses.
func makeNode(ctx context.Context, api client.Client, name string) (*v1.Node, error) {
	node := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name}}}
	if err := api.Create(ctx, node); err != nil {
		return nil, fmt.Errorf("creating node %s: %w", name, err)
	}
	node.Status = v1.NodeStatus{
		Allocatable: v1.ResourceList{
			v1.ResourcePods: resource.MustParse("500"), v1.ResourceCPU: resource.MustParse("64"), v1.ResourceMemory: resource.MustParse("512Gi"),
		},
		Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue}},
	}
	if err := api.Status().Update(ctx, node); err != nil {
		return nil, fmt.Errorf("filling node %s: %w", name, err)
	}
	return node, nil
}

// makeNodes makes count nodes, several at a time.
func makeNodes(ctx context.Context, api client.Client, count int) ([]v1.Node, error) {
	nodes := make([]v1.Node, count)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range nodes {
		group.Go(func() error {
			node, err := makeNode(ctx, api, fmt.Sprintf("node-%d", i))
			if err == nil {
				nodes[i] = *node
			}
			return err
		})
	}
	return nodes, group.Wait()
}

// watchPods calls see for each pod that selector matches, at each change,
// until the context ends. It does not return before the watch stands.
func watchPods(ctx context.Context, config *rest.Config, selector fields.Selector, see func(*v1.Pod, time.Time)) error {
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	source := cache.NewListWatchFromClient(set.CoreV1().RESTClient(), "pods", v1.NamespaceAll, selector)
	seen := func(obj any) {
		if pod, ok := obj.(*v1.Pod); ok {
			see(pod, time.Now())
		}
	}
	informer := cache.NewSharedIndexInformer(source, &v1.Pod{}, 0, nil)
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, obj any) { seen(obj) }}); err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	go informer.RunWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("watching pods: %w", context.Cause(ctx))
	}
	return nil
}

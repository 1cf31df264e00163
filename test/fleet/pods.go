// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
	"github.com/netplane/netplane/test/isolated"
)

// starting bounds the pods that a node starts at once.
const starting = 8

// defaultResult is what the node's own configuration would have given a pod.
const defaultResult = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.244.1.9/24","interface":0}]}`

// Running is a pod and where it runs.
type Running struct {
	*corev1.Pod
	node *Node
}

// StartPods binds pods to the nodes in turn and has each attached to the first
// so many networks of Furnish.
func (c *Cluster) StartPods(b *testing.B, nodes []*Node, count, networks int) []Running {
	b.Helper()
	var names []string
	for i := 1; i <= networks; i++ {
		names = append(names, NetworkName(i))
	}
	pods := make([]Running, count)
	namespaces := make([]string, count)
	for i := range namespaces {
		namespaces[i] = isolated.NewNamespace(b)
	}
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(starting * len(nodes))
	for i := range pods {
		n := nodes[i%len(nodes)]
		group.Go(func() error {
			pod, err := c.newPod(ctx, n, fmt.Sprintf("web-%04d", i), strings.Join(names, ","))
			if err != nil {
				return err
			}
			pods[i] = Running{pod, n}
			return n.add(ctx, pod, namespaces[i])
		})
	}
	Must(b, group.Wait())
	return pods
}

// EndPods does what kubelet does: DEL, and then the pod goes.
func (c *Cluster) EndPods(b *testing.B, pods []Running) {
	b.Helper()
	group, ctx := errgroup.WithContext(b.Context())
	group.SetLimit(starting)
	for _, pod := range pods {
		group.Go(func() error {
			if err := pod.node.del(ctx, pod.Pod); err != nil {
				return err
			}
			return c.Delete(ctx, pod.Pod, client.GracePeriodSeconds(0))
		})
	}
	Must(b, group.Wait())
}

// AwaitStatus waits until so many pods have their annotation.
func (c *Cluster) AwaitStatus(b *testing.B, count int) {
	b.Helper()
	Await(b, "network-status of every pod", func() error {
		var pods metav1.PartialObjectMetadataList
		pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
		if err := c.List(context.WithoutCancel(b.Context()), &pods, client.InNamespace("default")); err != nil {
			return err
		}
		told := 0
		for i := range pods.Items {
			if pods.Items[i].Annotations[v1alpha1.AnnotationNetworkStatus] != "" {
				told++
			}
		}
		if told < count {
			return fmt.Errorf("%d of %d have it", told, count)
		}
		return nil
	})
}

// newPod makes a pod and binds it to the node, as the scheduler does.
func (c *Cluster) newPod(ctx context.Context, n *Node, name, networks string) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks}},
		Spec: corev1.PodSpec{
			SchedulerName: "netplane-scheduler", ServiceAccountName: "default",
			Containers: []corev1.Container{{Name: "c", Image: "web"}},
		},
	}
	if err := c.Create(ctx, pod); err != nil {
		return nil, err
	}
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: n.Name}}
	return pod, c.SubResource("binding").Create(ctx, pod, binding)
}

// add is the CNI command ADD, as the binary passes it on.
func (n *Node) add(ctx context.Context, pod *corev1.Pod, netnsPath string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	connection, err := wire.Dial(ctx, filepath.Join(n.state, "agent.sock"))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	sandbox := wire.Sandbox{ContainerID: "sandbox-of-" + pod.Name, NetNS: netnsPath, PodNamespace: pod.Namespace, PodName: pod.Name, PodUID: string(pod.UID)}
	if _, err := connection.Call(ctx, wire.Request{Op: wire.OpPrepare, Sandbox: sandbox, Networks: pod.Annotations[v1alpha1.AnnotationNetworks]}); err != nil {
		return fmt.Errorf("preparing %s: %w", pod.Name, err)
	}
	_, err = connection.Call(ctx, wire.Request{Op: wire.OpCommit, Sandbox: sandbox, Default: &wire.DefaultNetwork{Name: "default", Result: json.RawMessage(defaultResult)}})
	if err != nil {
		return fmt.Errorf("attaching %s: %w", pod.Name, err)
	}
	return nil
}

// del is the CNI command DEL.
func (n *Node) del(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	connection, err := wire.Dial(ctx, filepath.Join(n.state, "agent.sock"))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	_, err = connection.Call(ctx, wire.Request{Op: wire.OpDel, Sandbox: wire.Sandbox{ContainerID: "sandbox-of-" + pod.Name}})
	return err
}

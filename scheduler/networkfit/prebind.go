// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// createTimeout bounds one request: a reply that is lost must be found out.
	createTimeout = 10 * time.Second
	// maxCreates bounds the requests for one block. Each candidate that another
	// has taken costs one, each lost reply another.
	maxCreates = 16
	// maxDoubts bounds those of them that fail without an answer of the API server's.
	maxDoubts = 3
)

// blockClient is what PreBind asks of the API server.
type blockClient interface {
	Create(ctx context.Context, block *v1alpha1.IPBlock) error
	Get(ctx context.Context, name string) (*v1alpha1.IPBlock, error)
}

// PreBindPreFlight is Skip for all but the pods for which a block is to be
// created: anything else would cost each pod a request (its nominatedNodeName).
func (pl *NetworkFit) PreBindPreFlight(_ context.Context, state fwk.CycleState, pod *v1.Pod, nodeName string) (*fwk.PreBindPreFlightResult, *fwk.Status) {
	for _, w := range readWants(state) {
		if w.unclaimed != nil && len(pl.sources.claims.missing(w.UID, nodeName, pod.UID)) > 0 {
			// Not in parallel with others: the agent gives back a block that no pod
			// comes for, so it is created last, when volumes are bound.
			return &fwk.PreBindPreFlightResult{}, nil
		}
	}
	return nil, fwk.NewStatus(fwk.Skip)
}

// PreBind creates the blocks that were promised to the node for the pod. A pod
// is bound only after they exist, so that no kubelet starts one in vain.
func (pl *NetworkFit) PreBind(ctx context.Context, state fwk.CycleState, pod *v1.Pod, nodeName string) *fwk.Status {
	for _, w := range readWants(state) {
		if w.unclaimed == nil {
			continue
		}
		for _, on := range pl.sources.claims.missing(w.UID, nodeName, pod.UID) {
			if err := pl.realise(ctx, on); err != nil {
				return fwk.AsStatus(fmt.Errorf("claiming a block of network %q for node %q: %w", w.Name, nodeName, err))
			}
		}
	}
	return nil
}

// realise creates a claim's block, unless another pod's PreBind does.
func (pl *NetworkFit) realise(ctx context.Context, on *claim) error {
	select {
	case on.turn <- struct{}{}:
		defer func() { <-on.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if pl.sources.claims.isCreated(on) {
		return nil
	}
	doubts := 0
	for range maxCreates {
		block := pl.sources.claims.block(on)
		mine, err := pl.create(ctx, block)
		switch {
		case err != nil && (answered(err) || doubts == maxDoubts || ctx.Err() != nil):
			return err
		case err != nil:
			doubts++
		case mine:
			pl.sources.claims.created(on)
			klog.FromContext(ctx).V(2).Info("Claimed a block on demand", "network", block.Spec.Network, "block", block.Spec.CIDR, "node", block.Spec.NodeName)
			return nil
		case !pl.sources.claims.replace(on, pl.sources.unclaimed(on.network, on.node.Name)):
			return errors.New("every block that is large enough is claimed by a node")
		}
	}
	return fmt.Errorf("%d blocks in turn were claimed by other nodes", maxCreates)
}

// create creates the block, and tells whether it is the node's: it may have
// been made by a request whose reply was lost, by another scheduler, or by the
// node's own agent.
func (pl *NetworkFit) create(ctx context.Context, block *v1alpha1.IPBlock) (mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	if err = pl.blocks.Create(ctx, block); err == nil || !apierrors.IsAlreadyExists(err) {
		return err == nil, err
	}
	there, err := pl.blocks.Get(ctx, block.Name)
	if err != nil {
		return false, fmt.Errorf("reading IPBlock %q, which exists: %w", block.Name, err)
	}
	// Of a Network of plugin vxlan the agent has added the node's tunnel address.
	was := there.Spec
	was.VTEP = block.Spec.VTEP
	return was == block.Spec && there.DeletionTimestamp == nil, nil
}

// answered tells that the API server has refused: the same again would be refused again.
func answered(err error) bool {
	return apierrors.ReasonForError(err) != metav1.StatusReasonUnknown && !apierrors.IsNotFound(err) && !apierrors.IsTimeout(err) &&
		!apierrors.IsServerTimeout(err) && !apierrors.IsTooManyRequests(err) && !apierrors.IsInternalError(err)
}

// dynamicBlocks is a blockClient of the kind that the informers use, too.
type dynamicBlocks struct {
	dynamic.ResourceInterface
}

// Create creates a block.
func (d dynamicBlocks) Create(ctx context.Context, block *v1alpha1.IPBlock) error {
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(block)
	if err != nil {
		return fmt.Errorf("writing IPBlock %q: %w", block.Name, err)
	}
	raw := &unstructured.Unstructured{Object: object}
	raw.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind("IPBlock"))
	_, err = d.ResourceInterface.Create(ctx, raw, metav1.CreateOptions{FieldManager: v1alpha1.DefaultSchedulerName})
	return err
}

// Get reads a block from the API server.
func (d dynamicBlocks) Get(ctx context.Context, name string) (*v1alpha1.IPBlock, error) {
	raw, err := d.ResourceInterface.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	block, _, err := typed[v1alpha1.IPBlock](raw)
	return block, err
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/ipclaims"
	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

// actionClaim is the action that events name.
const actionClaim = "ClaimAddress"

// maxCollisions bounds how many addresses that the cache showed as free, and
// that were not, one sync tries.
const maxCollisions = 16

// errCollisions has the sync repeated, when the cache has caught up.
var errCollisions = errors.New("the addresses that seemed to be free were taken a moment ago")

// podReconciler makes the claims that pods ask for. It runs one worker.
//
// +kubebuilder:rbac:groups=netplane.io,resources=ipclaims,verbs=get;list;watch;create
// +kubebuilder:rbac:groups=netplane.io,resources=networks,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods;namespaces,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
type podReconciler struct {
	client   client.Client
	live     client.Reader
	recorder events.EventRecorder
	wanting  *wanting
}

// lack is why no claim was made. Without a reason nothing is told: somebody else
// says why, or it is a matter of a moment.
type lack struct{ reason, message string }

// Reconcile sees to it that there is a claim for each fixed address that a pod
// asks for.
func (r *podReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var pod corev1.Pod
	if err := r.client.Get(ctx, request.NamespacedName, &pod); err != nil {
		r.wanting.set(request.NamespacedName, "", nil)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	lacks, told := map[string]lack{}, map[string]string{}
	var errs []error
	if stays(&pod) {
		requests := fixedRequests(&pod)
		for i := range requests {
			why, err := r.provide(ctx, &pod, &requests[i])
			if err != nil {
				errs = append(errs, fmt.Errorf("claiming an address of network %q: %w", requests[i].Name, err))
			} else if why != nil {
				lacks[requests[i].IfName], told[requests[i].IfName] = *why, why.reason+why.message
			}
		}
	}
	r.tell(&pod, lacks, r.wanting.set(request.NamespacedName, pod.UID, told))
	return ctrl.Result{}, errors.Join(errs...)
}

// tell makes one event for each reason: the events API counts another with the
// same reason as a repetition of the first.
func (r *podReconciler) tell(pod *corev1.Pod, lacks map[string]lack, news map[string]bool) {
	messages, changed := map[string][]string{}, map[string]bool{}
	for item, why := range lacks {
		if why.reason != "" {
			messages[why.reason] = append(messages[why.reason], why.message)
			changed[why.reason] = changed[why.reason] || news[item]
		}
	}
	for reason, texts := range messages {
		if changed[reason] {
			slices.Sort(texts)
			r.recorder.Eventf(pod, nil, corev1.EventTypeWarning, reason, actionClaim, "%s", strings.Join(texts, "; "))
		}
	}
}

// provide makes a claim for one request, unless there is one.
func (r *podReconciler) provide(ctx context.Context, pod *corev1.Pod, request *podnetworks.Request) (*lack, error) {
	network, plan, err := r.usable(ctx, pod, request.Name)
	if err != nil || network == nil {
		return &lack{}, err
	}
	owner := ipclaims.Owner(pod.Namespace, pod.Name, request)
	claims, err := claimsOf(ctx, r.client, network.Name, owner)
	if err != nil {
		return nil, err
	}
	claims = slices.DeleteFunc(claims, func(c *v1alpha1.IPClaim) bool { return !ipclaims.Of(c, network) })
	holds := func(c *v1alpha1.IPClaim) bool {
		return ipclaims.Holds(c, pod.Namespace, pod.Name, pod.UID, request)
	}
	if chosen := ipclaims.Choose(claims, owner, request); chosen != nil && chosen.DeletionTimestamp.IsZero() || slices.ContainsFunc(claims, holds) {
		return nil, nil
	}
	fixed, err := plan.FixedOf(request.IPs)
	if err != nil {
		return &lack{v1alpha1.EventFixedAddressInvalid, fmt.Sprintf("network %s: %v", network.Name, err)}, nil
	}
	want := newClaim(network, owner, request)
	if fixed.IsValid() {
		return r.claimNamed(ctx, want, fixed)
	}
	return r.claimFirst(ctx, want, plan)
}

// usable is the Network if a pod may have addresses of it; else somebody else
// says why not: the scheduler, on what the Network's status says.
func (r *podReconciler) usable(ctx context.Context, pod *corev1.Pod, name string) (*v1alpha1.Network, *addressing.Plan, error) {
	var network v1alpha1.Network
	if err := r.client.Get(ctx, client.ObjectKey{Name: name}, &network); err != nil {
		return nil, nil, client.IgnoreNotFound(err)
	}
	if !network.DeletionTimestamp.IsZero() || !isReady(&network) {
		return nil, nil, nil
	}
	plan, err := addressing.NewPlan(name, &network.Spec)
	if err != nil {
		return nil, nil, nil //nolint:nilerr // the Network's condition says so
	}
	if network.Spec.NamespaceSelector == nil {
		return &network, plan, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(network.Spec.NamespaceSelector)
	if err != nil {
		return nil, nil, nil //nolint:nilerr // the scheduler says so
	}
	var namespace corev1.Namespace
	if err := r.client.Get(ctx, client.ObjectKey{Name: pod.Namespace}, &namespace); err != nil || !selector.Matches(labels.Set(namespace.Labels)) {
		return nil, nil, client.IgnoreNotFound(err)
	}
	return &network, plan, nil
}

func newClaim(network *v1alpha1.Network, owner v1alpha1.IPClaimOwner, request *podnetworks.Request) *v1alpha1.IPClaim {
	return &v1alpha1.IPClaim{
		ObjectMeta: metav1.ObjectMeta{Finalizers: []string{v1alpha1.FinalizerIPClaim}},
		Spec: v1alpha1.IPClaimSpec{
			Network: network.Name, NetworkUID: network.UID, Owner: owner, ReclaimPolicy: ipclaims.ReclaimPolicy(request),
		},
	}
}

// claimNamed claims the address that the pod names.
func (r *podReconciler) claimNamed(ctx context.Context, want *v1alpha1.IPClaim, addr netip.Addr) (*lack, error) {
	var other v1alpha1.IPClaim
	err := r.client.Get(ctx, client.ObjectKey{Name: addressing.ClaimName(want.Spec.Network, addr)}, &other)
	if apierrors.IsNotFound(err) {
		var taken *v1alpha1.IPClaim
		if taken, err = r.create(ctx, want, addr); err != nil || taken == nil {
			return nil, err
		}
		other = *taken
	}
	if err != nil {
		return nil, fmt.Errorf("reading IPClaim %q: %w", other.Name, err)
	}
	if other.Spec.Owner == want.Spec.Owner {
		return &lack{}, nil // it is being deleted, or an earlier Network's
	}
	return &lack{v1alpha1.EventFixedAddressTaken, fmt.Sprintf("network %s: address %s belongs to %s", want.Spec.Network, addr, ipclaims.Describe(other.Spec.Owner))}, nil
}

// claimFirst claims the first free address in the owner's own order. It is the
// same at each try, so that a claim that the cache does not show yet is found
// again.
func (r *podReconciler) claimFirst(ctx context.Context, want *v1alpha1.IPClaim, plan *addressing.Plan) (*lack, error) {
	collisions := 0
	for addr := range plan.FixedAddresses(ipclaims.Key(want.Spec.Network, want.Spec.Owner)) {
		gone, err := isGone(ctx, r.client, &v1alpha1.IPClaim{}, client.ObjectKey{Name: addressing.ClaimName(want.Spec.Network, addr)})
		if err != nil {
			return nil, err
		}
		if !gone {
			continue
		}
		taken, err := r.create(ctx, want, addr)
		if err != nil || taken == nil {
			return nil, err
		}
		if collisions++; collisions > maxCollisions {
			return nil, errCollisions
		}
	}
	return &lack{v1alpha1.EventNoFixedAddressLeft, fmt.Sprintf("network %s: every address of staticRange %s belongs to somebody", want.Spec.Network, plan.StaticRange())}, nil
}

// create makes the claim of an address. If another exists it is returned,
// unless it is the very same: then the reply to an earlier request was lost.
func (r *podReconciler) create(ctx context.Context, want *v1alpha1.IPClaim, addr netip.Addr) (taken *v1alpha1.IPClaim, err error) {
	claim := want.DeepCopy()
	claim.Name, claim.Spec.Address = addressing.ClaimName(claim.Spec.Network, addr), v1alpha1.IP(addr.String())
	err = r.client.Create(ctx, claim)
	switch {
	case err == nil:
		log.FromContext(ctx).V(2).Info("Made an IPClaim", "ipclaim", claim.Name, "owner", ipclaims.Describe(claim.Spec.Owner))
		return nil, nil
	case !apierrors.IsAlreadyExists(err):
		return nil, fmt.Errorf("creating IPClaim %q: %w", claim.Name, err)
	}
	var other v1alpha1.IPClaim
	if err := r.live.Get(ctx, client.ObjectKeyFromObject(claim), &other); err != nil {
		return nil, fmt.Errorf("reading IPClaim %q, which exists: %w", claim.Name, err)
	}
	own := other.Spec.Owner == claim.Spec.Owner && other.Spec.NetworkUID == claim.Spec.NetworkUID && other.DeletionTimestamp.IsZero()
	if own {
		return nil, nil
	}
	return &other, nil
}

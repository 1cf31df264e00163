// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Bounds of the wait for pods that are being started.
const (
	startsWait = 30 * time.Second
	startsPoll = time.Second
)

// uninstall gives the node its own CNI configuration back. The agent goes on
// serving: pods that have networks keep the host's way to them and their
// addresses, and what they leave is collected.
func (a *agent) uninstall(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	starting := a.awaitStarts(ctx)
	select {
	case <-ctx.Done():
		return nil
	default:
	}
	if starting > 0 {
		logger.Info("Pods that asked for networks may start without: they did not start in time", "pods", starting)
	}
	if err := a.installer.Uninstall(); err != nil {
		return err
	}
	// Not before: who is being started now would be refused, and tried again
	// without us.
	a.inventory.Uninstalled()
	logger.Info("Gave the node its own CNI configuration back; the pods that have networks keep them", "sandboxes", a.server.Sandboxes())
	return nil
}

// awaitStarts waits for pods that are being started with networks: without our
// configuration they would come up without. It returns how many have not.
func (a *agent) awaitStarts(ctx context.Context) int {
	for deadline := time.Now().Add(startsWait); ; {
		var pods corev1.PodList
		if err := a.mgr.GetClient().List(ctx, &pods); err != nil {
			return 0 // the cache is filled: only its end makes it fail
		}
		starting := 0
		for i := range pods.Items {
			if beingStarted(&pods.Items[i]) {
				starting++
			}
		}
		if starting == 0 || time.Now().After(deadline) {
			return starting
		}
		select {
		case <-ctx.Done():
			return starting
		case <-time.After(startsPoll):
		}
	}
}

// beingStarted says that a pod asked for networks, in whichever way, and has none
// yet. One that Multus sees to is waited for in vain at worst.
func beingStarted(pod *corev1.Pod) bool {
	asks := slices.ContainsFunc([]string{v1alpha1.AnnotationNetworks, v1alpha1.AnnotationNPWGNetworks, v1alpha1.AnnotationMultusDefaultNetwork},
		func(key string) bool { return strings.TrimSpace(pod.Annotations[key]) != "" })
	_, has := pod.Annotations[v1alpha1.AnnotationNetworkStatus]
	return asks && !has && pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodPending
}

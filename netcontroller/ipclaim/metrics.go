// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipclaim

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// collectTimeout bounds the wait for caches that are being filled.
const collectTimeout = time.Second

// reasonNew stands for claims that have no condition yet.
const reasonNew = "New"

// collector counts the claims of each network by the reason of their condition
// Bound, when it is asked.
type collector struct {
	reader client.Reader
	desc   *prometheus.Desc
}

func newCollector(reader client.Reader) *collector {
	return &collector{reader: reader, desc: prometheus.NewDesc("netplane_ipclaims",
		"Fixed addresses that belong to somebody, by the reason of their IPClaim's condition Bound.", []string{"network", "reason"}, nil)}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector. Before the caches are filled it tells
// nothing.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	var list v1alpha1.IPClaimList
	if err := c.reader.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return
	}
	type key struct{ network, reason string }
	counts := map[key]int{}
	for i := range list.Items {
		claim := &list.Items[i]
		reason := reasonNew
		if bound := meta.FindStatusCondition(claim.Status.Conditions, v1alpha1.ConditionBound); bound != nil {
			reason = bound.Reason
		}
		counts[key{claim.Spec.Network, reason}]++
	}
	for k, count := range counts {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(count), k.network, k.reason)
	}
}

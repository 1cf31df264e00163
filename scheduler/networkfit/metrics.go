// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// cause is what a node was rejected for, whatever the network.
type cause int

// Causes.
const (
	nothing cause = iota
	noAgent
	noNIC
	down
	refused
	noBlock
	tooFew
	full
	tooFewNICs
	noFreeNIC
	causes // their number
)

// String is the cause as the value of the metric's label.
func (c cause) String() string {
	return [causes]string{"nothing", "no_agent", "no_nic", "nic_down", "refused", "no_block", "too_few_addresses", "no_free_address", "too_few_nics", "no_free_nic"}[c]
}

// pluginMetrics are the plugin's series. They are counted here and made when
// they are asked for: Filter does no more than add one, and kube-scheduler's
// DELETE /metrics, which empties counters with labels, does not cut them off.
type pluginMetrics struct {
	metrics.BaseStableCollector

	filteredDesc *metrics.Desc
	filtered     [causes]atomic.Uint64
	waitingDesc  *metrics.Desc
	sources      atomic.Pointer[Sources]
}

// registerMetrics makes the series known to kube-scheduler's own registry. A
// process has them once: all profiles count in the same.
func registerMetrics(sources *Sources) (*pluginMetrics, error) {
	made := &pluginMetrics{
		filteredDesc: metrics.NewDesc("netplane_scheduler_filtered_nodes_total",
			"Nodes that Filter has rejected for a pod, by reason.", []string{"reason"}, nil, metrics.ALPHA, ""),
		waitingDesc: metrics.NewDesc("netplane_scheduler_pods_waiting",
			"Pods without a node that ask for the network.", []string{"network"}, nil, metrics.ALPHA, ""),
	}
	err := legacyregistry.CustomRegister(made)
	if known := (prometheus.AlreadyRegisteredError{}); errors.As(err, &known) {
		if existing, ok := known.ExistingCollector.(*pluginMetrics); ok {
			made, err = existing, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	made.sources.Store(sources)
	return made, nil
}

// DescribeWithStability names the series.
func (m *pluginMetrics) DescribeWithStability(into chan<- *metrics.Desc) {
	into <- m.filteredDesc
	into <- m.waitingDesc
}

// CollectWithStability makes the series.
func (m *pluginMetrics) CollectWithStability(into chan<- metrics.Metric) {
	for c := nothing + 1; c < causes; c++ {
		into <- metrics.NewLazyConstMetric(m.filteredDesc, metrics.CounterValue, float64(m.filtered[c].Load()), c.String())
	}
	sources := m.sources.Load()
	if sources == nil {
		return
	}
	for _, network := range sources.pods.ListIndexFuncValues(indexWaitingByNetwork) {
		// The last pod may have gone between the two calls.
		keys, err := sources.pods.IndexKeys(indexWaitingByNetwork, network)
		if err == nil && len(keys) > 0 {
			into <- metrics.NewLazyConstMetric(m.waitingDesc, metrics.GaugeValue, float64(len(keys)), network)
		}
	}
}

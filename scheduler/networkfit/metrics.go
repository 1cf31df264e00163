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
	causes // their number
)

// String is the cause as the metric's label.
func (c cause) String() string {
	return [causes]string{"nothing", "no_agent", "no_nic", "nic_down", "refused", "no_block", "too_few_addresses", "no_free_address"}[c]
}

// pluginMetrics are the series of one process, with the label values looked up
// already: Filter only counts.
type pluginMetrics struct {
	filtered [causes]metrics.CounterMetric
}

// registerMetrics makes the series known to kube-scheduler's own registry. All
// profiles share them: a second registration finds those of the first.
func registerMetrics(sources *Sources) (*pluginMetrics, error) {
	filtered, err := once(metrics.NewCounterVec(&metrics.CounterOpts{
		Name:           "netplane_scheduler_filtered_nodes_total",
		Help:           "Nodes that Filter has rejected for a pod, by reason.",
		StabilityLevel: metrics.ALPHA,
	}, []string{"reason"}), func(vec *metrics.CounterVec) error { return legacyregistry.Register(vec) })
	if err != nil {
		return nil, err
	}
	waiting, err := once(newWaiting(), func(collector *waiting) error { return legacyregistry.CustomRegister(collector) })
	if err != nil {
		return nil, err
	}
	waiting.sources.Store(sources)
	var made pluginMetrics
	for c := nothing + 1; c < causes; c++ {
		made.filtered[c] = filtered.WithLabelValues(c.String())
	}
	return &made, nil
}

// once registers a collector, or returns the one of its kind that is registered already.
func once[C prometheus.Collector](collector C, register func(C) error) (C, error) {
	err := register(collector)
	if known := (prometheus.AlreadyRegisteredError{}); errors.As(err, &known) {
		if existing, ok := known.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	if err != nil {
		return collector, fmt.Errorf("registering metrics: %w", err)
	}
	return collector, nil
}

// waiting counts, when it is asked, the pods that have no node yet.
type waiting struct {
	metrics.BaseStableCollector

	desc    *metrics.Desc
	sources atomic.Pointer[Sources]
}

func newWaiting() *waiting {
	return &waiting{desc: metrics.NewDesc("netplane_scheduler_pods_waiting",
		"Pods without a node that ask for the network.", []string{"network"}, nil, metrics.ALPHA, "")}
}

// DescribeWithStability names the series.
func (w *waiting) DescribeWithStability(into chan<- *metrics.Desc) { into <- w.desc }

// CollectWithStability counts.
func (w *waiting) CollectWithStability(into chan<- metrics.Metric) {
	sources := w.sources.Load()
	if sources == nil {
		return
	}
	for _, network := range sources.pods.ListIndexFuncValues(indexWaitingByNetwork) {
		// The last pod may have gone between the two calls.
		keys, err := sources.pods.IndexKeys(indexWaitingByNetwork, network)
		if err == nil && len(keys) > 0 {
			into <- metrics.NewLazyConstMetric(w.desc, metrics.GaugeValue, float64(len(keys)), network)
		}
	}
}

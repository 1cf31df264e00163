// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// claimResult is the label of netplane_ipam_claims_total.
type claimResult string

const (
	claimCreated   claimResult = "created"   // the block is ours
	claimAdopted   claimResult = "adopted"   // it was ours already: the reply had been lost, or the Node registered anew
	claimTaken     claimResult = "taken"     // another node has it
	claimExhausted claimResult = "exhausted" // no candidate was left
	claimFailed    claimResult = "failed"    // the API server refused, or did not answer
	claimConflict  claimResult = "conflict"  // leases live in a block that another node has
)

// Metrics count what the Claimer and the Collector do.
type Metrics struct {
	claims   *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	released prometheus.Counter
	// rollbacks counts signs that the API server's state went back.
	rollbacks prometheus.Counter
}

// NewMetrics registers the metrics of a node's address management. It fails
// when reg has metrics of these names already.
func NewMetrics(reg prometheus.Registerer, manager *Manager) (*Metrics, error) {
	m := newMetrics()
	err := errors.Join(reg.Register(m.claims), reg.Register(m.latency), reg.Register(m.released), reg.Register(m.rollbacks),
		reg.Register(addressCollector{manager, addressesDesc()}), reg.Register(conflictCollector{manager, conflictsDesc()}),
		reg.Register(newTallyCollector(&manager.garbage, "netplane_ipam_garbage_total", "Addresses freed because their network namespace was gone.")),
		reg.Register(newTallyCollector(&manager.foreign, "netplane_ipam_foreign_addresses_total", "Addresses put aside because a host outside the cluster answered for them.")))
	if err != nil {
		return nil, fmt.Errorf("registering the metrics of address management: %w", err)
	}
	return m, nil
}

func newMetrics() *Metrics {
	return &Metrics{
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "netplane_ipam_claims_total",
			Help: "Attempts to claim an IPBlock, by Network and result.",
		}, []string{"network", "result"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "netplane_ipam_claim_seconds",
			Help:    "Time from when a block came to be needed, or the one before was claimed, to its claim: with pauses and failed attempts.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 12),
		}, []string{"network"}),
		released: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "netplane_ipam_blocks_released_total",
			Help: "IPBlocks that this node has let go.",
		}),
		rollbacks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "netplane_ipam_rollback_signs_total",
			Help: "Signs that the API server's state went back to an earlier one; each makes new claims wait.",
		}),
	}
}

func (m *Metrics) claim(network string, result claimResult) {
	m.claims.WithLabelValues(network, string(result)).Inc()
}

// forget drops the series of a Network that is gone.
func (m *Metrics) forget(network string) {
	m.claims.DeletePartialMatch(prometheus.Labels{"network": network})
	m.latency.DeleteLabelValues(network)
}

func (m *Metrics) took(network string, d time.Duration) {
	m.latency.WithLabelValues(network).Observe(d.Seconds())
}

func addressesDesc() *prometheus.Desc {
	return prometheus.NewDesc("netplane_ipam_addresses",
		"Addresses of the node's blocks: used ones, free ones, and used ones in blocks that are closed or not the node's; and fixed addresses in use.",
		[]string{"network", "state"}, nil)
}

// addressCollector reads the Manager when it is asked, so that a Network that
// goes leaves no series behind.
type addressCollector struct {
	manager *Manager
	desc    *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c addressCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector.
func (c addressCollector) Collect(out chan<- prometheus.Metric) {
	for _, network := range c.manager.Networks() {
		usage := c.manager.Usage(network)
		for state, value := range usage.count() {
			metric, err := prometheus.NewConstMetric(c.desc, prometheus.GaugeValue, float64(value), network, state)
			if err != nil {
				metric = prometheus.NewInvalidMetric(c.desc, err)
			}
			out <- metric
		}
	}
}

func conflictsDesc() *prometheus.Desc {
	return prometheus.NewDesc("netplane_ipam_conflicts",
		"IPBlocks in which addresses are in use here although another node has the block.", []string{"network"}, nil)
}

// conflictCollector reads the Manager when it is asked.
type conflictCollector struct {
	manager *Manager
	desc    *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c conflictCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector.
func (c conflictCollector) Collect(out chan<- prometheus.Metric) {
	for _, network := range c.manager.Networks() {
		metric, err := prometheus.NewConstMetric(c.desc, prometheus.GaugeValue, float64(len(c.manager.conflictsOf(network))), network)
		if err != nil {
			metric = prometheus.NewInvalidMetric(c.desc, err)
		}
		out <- metric
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// tally counts by Network. It is safe for concurrent use.
type tally struct {
	mu     sync.Mutex
	counts map[string]int64
}

func (t *tally) add(network string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == nil {
		t.counts = map[string]int64{}
	}
	t.counts[network]++
}

// forget drops a Network that is gone.
func (t *tally) forget(network string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.counts, network)
}

func (t *tally) all() map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

// tallyCollector shows a tally as a counter.
type tallyCollector struct {
	tally *tally
	desc  *prometheus.Desc
}

func newTallyCollector(t *tally, name, help string) tallyCollector {
	return tallyCollector{t, prometheus.NewDesc(name, help, []string{"network"}, nil)}
}

// Describe implements prometheus.Collector.
func (c tallyCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector.
func (c tallyCollector) Collect(out chan<- prometheus.Metric) {
	for network, count := range c.tally.all() {
		metric, err := prometheus.NewConstMetric(c.desc, prometheus.CounterValue, float64(count), network)
		if err != nil {
			metric = prometheus.NewInvalidMetric(c.desc, err)
		}
		out <- metric
	}
}

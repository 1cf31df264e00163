// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// collector answers a scrape from the state that the agent has anyway.
type collector struct {
	agent *agent

	physical, refused, held, unreported, cached, ready, unreadable *prometheus.Desc
	clusterIPPods, frontends, ruleChanges                          *prometheus.Desc
}

func newCollector(a *agent) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("netplane_agent_"+name, help, labels, nil)
	}
	return &collector{
		agent:         a,
		physical:      desc("physical_network_ready", "1 if a NIC that is up backs the physical network on this node.", "physical_network"),
		refused:       desc("network_refused", "1 for every Network that this node refuses although it backs its physical network.", "network", "reason"),
		held:          desc("addresses_held", "Leased addresses that no living pod accounts for.", "network"),
		unreported:    desc("reports_pending", "Pods whose network-status is not written yet."),
		cached:        desc("cached_objects", "Objects of the API server that the agent keeps copies of and watches.", "kind"),
		clusterIPPods: desc("clusterip_pods", "Pods that reach ClusterIPs by rules of their own."),
		frontends:     desc("clusterip_frontends", "Ports of ClusterIPs in the rules of all pods."),
		ruleChanges:   desc("clusterip_changes_total", "Changes of a pod's rules of ClusterIPs.", "result"),
		unreadable:    desc("unreadable_files", "Files of the agent's state that could not be read, by folder.", "folder"),
		ready:         desc("ready", "1 once the agent serves the CNI."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.physical, c.refused, c.held, c.unreported, c.cached, c.ready, c.unreadable, c.clusterIPPods, c.frontends, c.ruleChanges} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	snapshot := c.agent.inventory.Current()
	for _, p := range snapshot.PhysicalNetworks() {
		gauge(c.physical, number(p.Ready), p.Name)
	}
	for _, r := range snapshot.Refused() {
		gauge(c.refused, 1, r.Network, r.Reason)
	}
	held := map[string]int{}
	for _, h := range c.agent.held.Held() {
		held[h.Network] += int(h.Count)
	}
	for network, count := range held {
		gauge(c.held, float64(count), network)
	}
	gauge(c.unreported, float64(c.agent.reporter.Pending()))
	for kind, count := range c.agent.cached() {
		gauge(c.cached, float64(count), kind)
	}
	records, spooled := c.agent.server.Unreadable()
	gauge(c.unreadable, float64(records), "sandboxes")
	gauge(c.unreadable, float64(spooled), "spool")
	stats := c.agent.clusterIPs.Stats()
	gauge(c.clusterIPPods, float64(stats.Pods))
	gauge(c.frontends, float64(stats.Frontends))
	for result, count := range map[string]uint64{"done": stats.Writes - stats.Failures, "failed": stats.Failures} {
		out <- prometheus.MustNewConstMetric(c.ruleChanges, prometheus.CounterValue, float64(count), result)
	}
	gauge(c.ready, number(c.agent.serving.Load()))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func registerMetrics(a *agent) error {
	if err := metrics.Registry.Register(newCollector(a)); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return nil
}

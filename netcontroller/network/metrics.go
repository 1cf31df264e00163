// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Values of the label kind.
const (
	kindCapacity = "capacity"
	kindClaimed  = "claimed"
	kindUsed     = "used"
	kindReady    = "ready"
	kindTotal    = "total"
)

// gauges are the metrics: what the status says, without its delay.
type gauges struct {
	addresses     *prometheus.GaugeVec
	nodes         *prometheus.GaugeVec
	physicalNodes *prometheus.GaugeVec
}

func newGauges(registerer prometheus.Registerer) (*gauges, error) {
	g := &gauges{
		addresses: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "netplane_network_addresses",
			Help: "Addresses of a Network: capacity in all, claimed by nodes, used by pods.",
		}, []string{"network", "kind"}),
		nodes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "netplane_network_nodes",
			Help: "Nodes behind a Network: total that map a NIC to it, ready that can serve it now.",
		}, []string{"network", "kind"}),
		physicalNodes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "netplane_physical_network_nodes",
			Help: "Nodes behind a PhysicalNetwork: total that map a NIC to it, ready with a NIC that is up.",
		}, []string{"physical_network", "kind"}),
	}
	for _, collector := range []prometheus.Collector{g.addresses, g.nodes, g.physicalNodes} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("registering the metrics of networks: %w", err)
		}
	}
	return g, nil
}

func (g *gauges) setNetwork(name string, status *v1alpha1.NetworkStatus) {
	g.addresses.WithLabelValues(name, kindCapacity).Set(float64(status.Addresses.Capacity))
	g.addresses.WithLabelValues(name, kindClaimed).Set(float64(status.Addresses.Claimed))
	g.addresses.WithLabelValues(name, kindUsed).Set(float64(status.Addresses.Used))
	g.nodes.WithLabelValues(name, kindReady).Set(float64(status.Nodes.Ready))
	g.nodes.WithLabelValues(name, kindTotal).Set(float64(status.Nodes.Total))
}

func (g *gauges) forgetNetwork(name string) {
	g.addresses.DeletePartialMatch(prometheus.Labels{"network": name})
	g.nodes.DeletePartialMatch(prometheus.Labels{"network": name})
}

func (g *gauges) setPhysicalNetwork(name string, nodes v1alpha1.NodeCounts) {
	g.physicalNodes.WithLabelValues(name, kindReady).Set(float64(nodes.Ready))
	g.physicalNodes.WithLabelValues(name, kindTotal).Set(float64(nodes.Total))
}

func (g *gauges) forgetPhysicalNetwork(name string) {
	g.physicalNodes.DeletePartialMatch(prometheus.Labels{"physical_network": name})
}

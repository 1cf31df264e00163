// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"
	logsapi "k8s.io/component-base/logs/api/v1"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/ipblock"
	"github.com/netplane/netplane/netcontroller/network"
)

// Bounds that keep a slip of the pen from harming a cluster.
const (
	minCounterInterval = time.Second
	minNodeGrace       = 10 * time.Second
)

// options are the program's flags.
type options struct {
	kubeconfig      string
	metricsAddress  string
	healthAddress   string
	namespace       string
	leaderElect     bool
	counterInterval time.Duration
	nodeGrace       time.Duration
	qps             float32
	burst           int
	logging         *logsapi.LoggingConfiguration
}

func defaultOptions() *options {
	return &options{
		metricsAddress:  ":8080",
		healthAddress:   ":8081",
		namespace:       v1alpha1.SystemNamespace,
		leaderElect:     true,
		counterInterval: network.DefaultCounterInterval,
		nodeGrace:       ipblock.DefaultGrace,
		qps:             100,
		burst:           200,
		logging:         logsapi.NewLoggingConfiguration(),
	}
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "file that says how to reach the API server; empty inside a cluster")
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", o.metricsAddress, "address of /metrics; 0 turns it off")
	fs.StringVar(&o.healthAddress, "health-probe-bind-address", o.healthAddress, "address of /healthz and /readyz; 0 turns them off")
	fs.StringVar(&o.namespace, "system-namespace", o.namespace, "namespace of netplane's own pods and of the leader election lease")
	fs.BoolVar(&o.leaderElect, "leader-elect", o.leaderElect, "act only while holding the lease, so that several replicas may run")
	fs.DurationVar(&o.counterInterval, "counter-interval", o.counterInterval, "least time between two writes of a status that differs in counters only")
	fs.DurationVar(&o.nodeGrace, "node-gone-grace", o.nodeGrace, "how long a Node and its pods must be gone before its addresses are freed")
	fs.Float32Var(&o.qps, "kube-api-qps", o.qps, "requests per second to the API server")
	fs.IntVar(&o.burst, "kube-api-burst", o.burst, "requests to the API server in a burst")
	logsapi.AddFlags(o.logging, fs)
}

// validate reports all errors at once; each names its flag.
func (o *options) validate() error {
	var errs []error
	if o.namespace == "" {
		errs = append(errs, errors.New("--system-namespace must not be empty"))
	}
	if o.counterInterval < minCounterInterval {
		errs = append(errs, fmt.Errorf("--counter-interval %s: must be at least %s, every node agent watches Networks", o.counterInterval, minCounterInterval))
	}
	if o.nodeGrace < minNodeGrace {
		errs = append(errs, fmt.Errorf("--node-gone-grace %s: must be at least %s, or addresses are freed that containers still use", o.nodeGrace, minNodeGrace))
	}
	if o.qps <= 0 || o.burst <= 0 {
		errs = append(errs, fmt.Errorf("--kube-api-qps %v, --kube-api-burst %d: must be positive", o.qps, o.burst))
	}
	return errors.Join(errs...)
}

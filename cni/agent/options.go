// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	logsapi "k8s.io/component-base/logs/api/v1"

	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/delegate"
)

// nodeNameVariable gives the node's name where --node-name does not: the
// DaemonSet sets it from spec.nodeName.
const nodeNameVariable = "NODE_NAME"

// maxSocketPath is what fits into sun_path with its terminating NUL (unix(7)).
const maxSocketPath = 107

// options are the program's flags.
type options struct {
	kubeconfig     string
	nodeName       string
	stateDir       string
	mapFile        string
	cniBinDir      string
	cniConfDir     string
	pluginSource   string
	hostProcSys    string
	healthAddress  string
	metricsAddress string
	serviceCIDRs   []string
	podCIDRs       []string
	nadTypes       []string
	nadIsolation   bool
	nadGlobal      []string
	nadConfDir     string
	qps            float32
	burst          int
	uninstall      bool
	logging        *logsapi.LoggingConfiguration
}

func defaultOptions() *options {
	return &options{
		nodeName:       os.Getenv(nodeNameVariable),
		stateDir:       "/run/netplane",
		mapFile:        "/etc/netplane/physical-network-map.yaml",
		cniBinDir:      "/host/opt/cni/bin",
		cniConfDir:     "/host/etc/cni/net.d",
		nadGlobal:      []string{"default"}, // as Multus's globalNamespaces and confDir
		nadConfDir:     "/host/etc/cni/multus/net.d",
		pluginSource:   "/opt/netplane/bin/netplane",
		hostProcSys:    "/host/proc/sys",
		healthAddress:  ":10271",
		metricsAddress: ":10272",
		qps:            50,
		burst:          100,
		logging:        logsapi.NewLoggingConfiguration(),
	}
}

func (o *options) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "file that says how to reach the API server; empty inside a cluster")
	fs.StringVar(&o.nodeName, "node-name", o.nodeName, "name of this Node; the environment's "+nodeNameVariable+" if not given")
	fs.StringVar(&o.stateDir, "state-dir", o.stateDir, "folder of the socket, the address journal and the sandboxes' records: the same path as on the host, in a tmpfs")
	fs.StringVar(&o.mapFile, "map-file", o.mapFile, "the node's own map from physical networks to NICs; it need not exist")
	fs.StringVar(&o.cniBinDir, "cni-bin-dir", o.cniBinDir, "the host's folder of CNI plugins")
	fs.StringVar(&o.cniConfDir, "cni-conf-dir", o.cniConfDir, "the host's folder of CNI configurations")
	fs.StringVar(&o.pluginSource, "plugin-source", o.pluginSource, "the CNI binary to install")
	fs.StringVar(&o.hostProcSys, "host-proc-sys", o.hostProcSys, "a /proc/sys that can be written to, for the settings of pods' interfaces")
	fs.StringVar(&o.healthAddress, "health-probe-bind-address", o.healthAddress, "address of /healthz and /readyz")
	fs.StringVar(&o.metricsAddress, "metrics-bind-address", o.metricsAddress, "address of /metrics; 0 turns it off")
	fs.StringSliceVar(&o.serviceCIDRs, "service-cidr", o.serviceCIDRs, "ranges of ClusterIPs; the cluster's ServiceCIDRs if not given")
	fs.StringSliceVar(&o.podCIDRs, "pod-cidr", o.podCIDRs, "ranges of the addresses that the cluster's own network gives pods; a pod reaches them by its eth0 also where another network has its default route")
	fs.StringSliceVar(&o.nadTypes, "nad-plugin-types", o.nadTypes, "CNI plugin types, IPAM plugins included, that NetworkAttachmentDefinitions may run on the node; tenants write these, and plugins are root: none by default")
	fs.BoolVar(&o.nadIsolation, "nad-namespace-isolation", o.nadIsolation, "pods may use the NetworkAttachmentDefinitions of their own namespace only, and those of --nad-global-namespaces")
	fs.StringSliceVar(&o.nadGlobal, "nad-global-namespaces", o.nadGlobal, "namespaces whose NetworkAttachmentDefinitions all pods may use, with --nad-namespace-isolation too")
	fs.StringVar(&o.nadConfDir, "nad-conf-dir", o.nadConfDir, "the host's folder of configurations for NetworkAttachmentDefinitions without spec.config, looked at before --cni-conf-dir; it need not exist")
	fs.Float32Var(&o.qps, "kube-api-qps", o.qps, "requests per second to the API server")
	fs.IntVar(&o.burst, "kube-api-burst", o.burst, "requests at once to the API server")
	fs.BoolVar(&o.uninstall, "uninstall", o.uninstall, "give the node its own CNI configuration back instead of installing ours, and look after the pods that have networks")
	logsapi.AddFlags(o.logging, fs)
}

// validate reports everything that is wrong at once.
func (o *options) validate() error {
	var problems []error
	if o.nodeName == "" {
		problems = append(problems, fmt.Errorf("--node-name is missing: give it, or set %s from the pod's spec.nodeName", nodeNameVariable))
	} else if wrong := validation.IsDNS1123Subdomain(o.nodeName); len(wrong) > 0 {
		problems = append(problems, fmt.Errorf("--node-name %q is no Node's name: %s", o.nodeName, wrong[0]))
	}
	for _, p := range []struct{ flag, path string }{
		{"state-dir", o.stateDir}, {"map-file", o.mapFile}, {"cni-bin-dir", o.cniBinDir}, {"cni-conf-dir", o.cniConfDir},
		{"plugin-source", o.pluginSource}, {"host-proc-sys", o.hostProcSys}, {"nad-conf-dir", o.nadConfDir},
	} {
		if !filepath.IsAbs(p.path) {
			problems = append(problems, fmt.Errorf("--%s %q must be an absolute path", p.flag, p.path))
		}
	}
	if socket := (attach.Config{StateDir: o.stateDir}).Socket(); len(socket) > maxSocketPath {
		problems = append(problems, fmt.Errorf("--state-dir is too long: the socket's path %s has %d bytes, and the kernel allows %d", socket, len(socket), maxSocketPath))
	}
	for _, read := range []func() ([]netip.Prefix, error){o.servicePrefixes, o.podPrefixes} {
		if _, err := read(); err != nil {
			problems = append(problems, err)
		}
	}
	if o.qps <= 0 || o.burst <= 0 {
		problems = append(problems, fmt.Errorf("--kube-api-qps %g and --kube-api-burst %d must be above 0", o.qps, o.burst))
	}
	return errors.Join(problems...)
}

func (o *options) servicePrefixes() ([]netip.Prefix, error) {
	return prefixes("service-cidr", o.serviceCIDRs)
}

func (o *options) podPrefixes() ([]netip.Prefix, error) { return prefixes("pod-cidr", o.podCIDRs) }

func prefixes(flag string, texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--%s %q must be a CIDR, such as 10.96.0.0/12", flag, text)
		}
		out = append(out, prefix.Masked())
	}
	return out, nil
}

// delegates are the CNI configurations and plugins that the node has of others.
func (o *options) delegates() *delegate.Library {
	return &delegate.Library{ConfDir: o.cniConfDir, DefinitionDir: o.nadConfDir, BinDir: o.cniBinDir}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/delegate"
	"github.com/netplane/netplane/cni/wire"
)

// Definitions gives NetworkAttachmentDefinitions (NPWG v1.3, section 3), whose
// kind need not be installed.
type Definitions interface {
	// Config is spec.config; empty means the node's own configuration of that
	// name. The error is the API server's.
	Config(ctx context.Context, namespace, name string) (string, error)
}

// systemNamespace holds the NetworkAttachmentDefinitions that take the place of
// the cluster's network, if the pod names no other.
const systemNamespace = "kube-system"

// Capabilities by which plugins are given what a pod asks for (NPWG v1.3,
// 4.1.2.1).
const (
	capabilityIPs          = "ips"
	capabilityPortMappings = "portMappings"
	capabilityBandwidth    = "bandwidth"
	capabilityGUID         = "infinibandGUID"
)

// selected are the interfaces that a pod asks for by NetworkAttachmentDefinitions,
// beside those of its Networks.
func (s *Server) selected(ctx context.Context, sandbox *wire.Sandbox, asked *wire.NPWG, others []wanted) ([]wanted, error) {
	if asked == nil {
		return nil, nil
	}
	selections, err := podnetworks.ParseSelections(asked.Networks, sandbox.PodNamespace)
	if err != nil {
		return nil, invalid("annotation %s: %v", v1alpha1.AnnotationNPWGNetworks, err)
	}
	var taken []string
	for i := range others {
		taken = append(taken, others[i].request.IfName)
	}
	if err := podnetworks.NameSelections(selections, taken); err != nil {
		return nil, invalid("annotation %s: %v", v1alpha1.AnnotationNPWGNetworks, err)
	}
	primary, err := primarySelection(asked, taken)
	if err != nil {
		return nil, invalid("annotation %s: %v", v1alpha1.AnnotationMultusDefaultNetwork, err)
	}
	var out []wanted
	for _, selection := range append(primary, selections...) {
		w, err := s.selectOne(ctx, sandbox, &selection)
		if err != nil {
			return nil, err
		}
		routed := slices.ContainsFunc(others, func(o wanted) bool { return o.request.DefaultRoute })
		if w.request.DefaultRoute && routed {
			return nil, invalid("%s: default-route is already asked for in annotation %s; a pod has one", w.network.Name, v1alpha1.AnnotationNetworks)
		}
		out = append(out, *w)
	}
	return out, nil
}

// primarySelection is what takes the place of the cluster's network, if anything.
func primarySelection(asked *wire.NPWG, taken []string) ([]podnetworks.Selection, error) {
	primary, err := podnetworks.ParseSelections(asked.Default, systemNamespace)
	switch {
	case err != nil || len(primary) == 0:
		return nil, err
	case len(primary) > 1:
		return nil, errors.New("it names more than one network")
	case slices.Contains(taken, podnetworks.PrimaryInterface):
		return nil, fmt.Errorf("annotation %s has a network on %s already", v1alpha1.AnnotationNetworks, podnetworks.PrimaryInterface)
	}
	primary[0].IfName = podnetworks.PrimaryInterface
	return primary, nil
}

// selectOne turns a selection into an interface that a delegate makes. The
// Network in it is only a name and a plugin.
func (s *Server) selectOne(ctx context.Context, sandbox *wire.Sandbox, selection *podnetworks.Selection) (*wanted, error) {
	name := selection.Namespace + "/" + selection.Name
	conf, err := s.definition(ctx, sandbox, selection)
	if err != nil {
		return nil, err
	}
	w := &wanted{
		request: podnetworks.Request{Name: name, IfName: selection.IfName, MAC: strings.ToLower(selection.MAC), DefaultRoute: len(selection.DefaultRoute) > 0},
		network: &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.NetworkSpec{Plugin: conf.Kind()}},
		conf:    conf,
	}
	for _, hop := range selection.DefaultRoute {
		if addr, err := netip.ParseAddr(hop); err == nil {
			w.hops = append(w.hops, addr)
		}
	}
	conf.SetArgs(selection.CNIArgs)
	return w, w.handOver(selection)
}

// handOver has the plugins given what the pod asks for. What none of them
// declares would be dropped without a word, so it is an error (NPWG v1.3).
func (w *wanted) handOver(selection *podnetworks.Selection) error {
	if selection.IPAMClaimReference != "" {
		return invalid("%s: ipam-claim-reference is for netplane's own Networks: see annotation %s", w.network.Name, v1alpha1.AnnotationNetworks)
	}
	w.runtimeConfig = map[string]json.RawMessage{}
	var ips json.RawMessage
	if len(selection.IPs) > 0 {
		var err error
		if ips, err = json.Marshal(selection.IPs); err != nil {
			return fmt.Errorf("encoding ips: %w", err)
		}
	}
	var guid json.RawMessage
	if selection.InfinibandGUID != "" {
		guid = json.RawMessage(`"` + selection.InfinibandGUID + `"`)
	}
	for _, item := range []struct {
		key, capability string
		value           json.RawMessage
	}{
		{"ips", capabilityIPs, ips}, {"portMappings", capabilityPortMappings, selection.PortMappings},
		{"bandwidth", capabilityBandwidth, selection.Bandwidth}, {"infiniband-guid", capabilityGUID, guid},
	} {
		if len(item.value) == 0 {
			continue
		}
		if !w.conf.Capable(item.capability) {
			return invalid("%s: no plugin declares the capability %s, so that the pod's %s would have no effect", w.network.Name, item.capability, item.key)
		}
		w.runtimeConfig[item.capability] = item.value
	}
	if w.request.MAC != "" && !w.conf.Capable(capabilityMAC) {
		return invalid("%s: no plugin declares the capability mac, so that the pod's mac would have no effect", w.network.Name)
	}
	return nil
}

// definition finds the configuration, and holds it to what tenants may run on
// the node: they write these objects, and the plugins are root.
func (s *Server) definition(ctx context.Context, sandbox *wire.Sandbox, selection *podnetworks.Selection) (*delegate.Conf, error) {
	name := selection.Namespace + "/" + selection.Name
	if len(s.config.NADPluginTypes) == 0 || s.deps.Delegates == nil || s.deps.Definitions == nil {
		return nil, invalid("the pod asks for NetworkAttachmentDefinition %s, and netplane's agents allow these no plugin: see their flag --nad-plugin-types", name)
	}
	own := selection.Namespace == sandbox.PodNamespace || selection.IfName == podnetworks.PrimaryInterface && selection.Namespace == systemNamespace
	if s.config.NADNamespaceIsolation && !own && !slices.Contains(s.config.NADGlobalNamespaces, selection.Namespace) {
		return nil, invalid("NetworkAttachmentDefinition %s is of another namespace than the pod, and netplane's agents isolate namespaces (--nad-namespace-isolation, --nad-global-namespaces)", name)
	}
	text, err := s.deps.Definitions.Config(ctx, selection.Namespace, selection.Name)
	switch {
	case meta.IsNoMatchError(err):
		return nil, retry("the pod asks for NetworkAttachmentDefinition %s, and the cluster does not have this kind: install its CRD (k8s.cni.cncf.io/v1)", name)
	case apierrors.IsNotFound(err):
		return nil, retry("NetworkAttachmentDefinition %s does not exist", name)
	case err != nil:
		return nil, retry("NetworkAttachmentDefinition %s: %v", name, err)
	}
	var conf *delegate.Conf
	if strings.TrimSpace(text) == "" {
		conf, err = s.deps.Delegates.Network(selection.Name)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("it has no spec.config, and the node no CNI configuration of network %q", selection.Name)
		}
	} else {
		conf, err = delegate.Parse([]byte(text), selection.Name)
	}
	if err != nil {
		return nil, invalid("NetworkAttachmentDefinition %s: %v", name, err)
	}
	if err := conf.Restrict(s.config.NADPluginTypes); err != nil {
		return nil, invalid("NetworkAttachmentDefinition %s: %v", name, err)
	}
	if err := s.deps.Delegates.Installed(conf); err != nil {
		return nil, retry("NetworkAttachmentDefinition %s: %v", name, err)
	}
	return conf, nil
}

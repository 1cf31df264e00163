// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// ServiceNetworks is what the annotation netplane.io/networks of a Service
// says: which networks each of its ports is offered on. "default" among them
// is the cluster's own network.
type ServiceNetworks struct {
	all    []string            // for every port; nil where byPort counts
	byPort map[string][]string // by port name
}

// ServiceOn is a Service whose ports are offered on the networks that byPort
// says, or, if that names no port, on all of them. It checks nothing.
func ServiceOn(byPort map[string][]string, all ...string) ServiceNetworks {
	if len(byPort) > 0 {
		return ServiceNetworks{byPort: byPort}
	}
	return ServiceNetworks{all: all}
}

// ParseService reads the annotation netplane.io/networks of a Service: either
// networks for all ports (management,data) or a YAML (or JSON) map from port
// name to networks (http: [management, data]). It is strict: an error names
// the port and network and the cure.
func ParseService(annotation string) (ServiceNetworks, error) {
	text := strings.TrimSpace(annotation)
	switch {
	case text == "":
		return ServiceNetworks{}, errors.New("the list is empty: name at least one network, such as management,data")
	case text[0] == '-' || text[0] == '[':
		return ServiceNetworks{}, errors.New("the networks of all ports are written without brackets and dashes, such as management,data")
	case strings.Contains(text, ":"):
		return parsePorts(text)
	}
	networks := strings.Split(text, ",")
	for i := range networks {
		networks[i] = strings.TrimSpace(networks[i])
	}
	if err := checkNetworks(networks); err != nil {
		return ServiceNetworks{}, err
	}
	return ServiceNetworks{all: networks}, nil
}

func parsePorts(text string) (ServiceNetworks, error) {
	var raw map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &raw); err != nil {
		return ServiceNetworks{}, fmt.Errorf("the annotation is no YAML map from port name to networks, such as http: [management, data]: %w", cleanYAML(err))
	}
	if len(raw) == 0 {
		return ServiceNetworks{}, errors.New("the map is empty: name the networks of each port, such as http: [management, data]")
	}
	out := ServiceNetworks{byPort: make(map[string][]string, len(raw))}
	for _, port := range slices.Sorted(maps.Keys(raw)) {
		networks, err := portNetworks(raw[port])
		if err == nil {
			err = checkNetworks(networks)
		}
		if err != nil {
			return ServiceNetworks{}, fmt.Errorf("port %q: %w", port, err)
		}
		out.byPort[port] = networks
	}
	return out, nil
}

func portNetworks(value any) ([]string, error) {
	items, ok := value.([]any)
	if !ok {
		return nil, errors.New("its networks must be a list, such as [management, data]")
	}
	out := make([]string, 0, len(items))
	for i, item := range items {
		name, ok := item.(string)
		if !ok {
			return nil, fmt.Errorf("item %d is no text: put the network's name in quotes", i+1)
		}
		out = append(out, name)
	}
	return out, nil
}

func checkNetworks(networks []string) error {
	if len(networks) == 0 {
		return errors.New("the list is empty: name at least one network, or default for the cluster's own")
	}
	if len(networks) > MaxRequests {
		return fmt.Errorf("%d networks are more than the %d that a port may have", len(networks), MaxRequests)
	}
	for i, name := range networks {
		if bare, ifname, ok := strings.Cut(name, "@"); ok {
			return fmt.Errorf("item %d: %q names the interface %q: a Service names the network alone, %s", i+1, name, ifname, bare)
		}
		if err := checkName(name); err != nil {
			return fmt.Errorf("item %d (network %q): %w", i+1, name, err)
		}
		if first := slices.Index(networks, name); first < i {
			return fmt.Errorf("item %d (network %q): already named by item %d", i+1, name, first+1)
		}
	}
	return nil
}

// ForPort returns the networks of the port with this name; the name is empty
// for a Service's only port.
func (s ServiceNetworks) ForPort(name string) []string {
	if s.byPort == nil {
		return s.all
	}
	return s.byPort[name]
}

// Networks returns every network named, once each, sorted.
func (s ServiceNetworks) Networks() []string {
	out := slices.Clone(s.all)
	for _, networks := range s.byPort {
		out = append(out, networks...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// CheckPorts tells whether the annotation fits a Service with these port
// names: a map names every port of it and no other.
func (s ServiceNetworks) CheckPorts(names []string) error {
	if s.byPort == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(s.byPort)) {
		if !slices.Contains(names, name) {
			return fmt.Errorf("port %q: the Service has no port of this name", name)
		}
	}
	for _, name := range names {
		if name == "" {
			return errors.New("the Service's port has no name: give it one, or write the networks without a map, such as management,data")
		}
		if _, ok := s.byPort[name]; !ok {
			return fmt.Errorf("port %q: the map does not name it: add its networks, or %s: [default] for the cluster's own", name, name)
		}
	}
	return nil
}

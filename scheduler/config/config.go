// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package config reads the arguments of the plugin NetworkFit as they stand
// in a KubeSchedulerConfiguration (profiles[].pluginConfig[].args).
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// What the arguments may say of themselves; saying nothing is usual. The
// version is that of the configuration which they are part of.
const (
	kind       = "NetworkFitArgs"
	apiVersion = "kubescheduler.config.k8s.io/v1"
)

// NetworkFitArgs are the arguments of NetworkFit.
type NetworkFitArgs struct {
	ScoringStrategy ScoringStrategy `json:"scoringStrategy,omitempty"`
}

// ScoringType says which of several fitting nodes is better.
type ScoringType string

const (
	// LeastUtilized spreads: the node whose requested networks have the most
	// free addresses left is best. The default.
	LeastUtilized ScoringType = "LeastUtilized"
	// MostUtilized packs, so that blocks elsewhere become empty and go back.
	MostUtilized ScoringType = "MostUtilized"
)

// ScoringStrategy may also be written as its type alone.
type ScoringStrategy struct {
	// Type is LeastUtilized if absent.
	Type ScoringType `json:"type,omitempty"`
	// Networks that matter more than others to a pod that asks for several: the
	// utilisation of a network counts in proportion to its weight. Networks
	// that are not listed weigh 1.
	Networks []NetworkWeight `json:"networks,omitempty"`
}

// NetworkWeight is the weight of one network.
type NetworkWeight struct {
	Name string `json:"name"`
	// Weight is from 1 to 100.
	Weight int32 `json:"weight"`
}

// Weight is what a network weighs.
func (s *ScoringStrategy) Weight(network string) int32 {
	for i := range s.Networks {
		if s.Networks[i].Name == network {
			return s.Networks[i].Weight
		}
	}
	return 1
}

// UnmarshalJSON reads both forms. It must be as strict as the decoder that
// calls it: strictness is not passed down.
func (s *ScoringStrategy) UnmarshalJSON(data []byte) error {
	*s = ScoringStrategy{}
	if bytes.HasPrefix(data, []byte(`"`)) {
		return json.Unmarshal(data, &s.Type)
	}
	type plain ScoringStrategy
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode((*plain)(s)); err != nil {
		return fmt.Errorf("scoringStrategy: %w", err)
	}
	return nil
}

// document is what the configuration file may hold.
type document struct {
	APIVersion     string `json:"apiVersion,omitempty"`
	Kind           string `json:"kind,omitempty"`
	NetworkFitArgs `json:",inline"`
}

// Decode reads the arguments that the scheduler's framework hands to the
// plugin's factory: nil if the profile has none, or *runtime.Unknown, because
// kube-scheduler's scheme does not know our kind. It is strict, fills in the
// defaults and validates.
func Decode(raw runtime.Object) (*NetworkFitArgs, error) {
	args, err := decode(raw)
	if err == nil {
		args.setDefaults()
		err = args.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("reading pluginConfig of NetworkFit: %w", err)
	}
	return args, nil
}

func (a *NetworkFitArgs) setDefaults() {
	if a.ScoringStrategy.Type == "" {
		a.ScoringStrategy.Type = LeastUtilized
	}
}

// validate names all that is wrong.
func (a *NetworkFitArgs) validate() error {
	var errs []error
	if s := a.ScoringStrategy.Type; s != LeastUtilized && s != MostUtilized {
		errs = append(errs, fmt.Errorf("scoringStrategy: %q is unknown: use %s or %s", s, LeastUtilized, MostUtilized))
	}
	for i, network := range a.ScoringStrategy.Networks {
		where := fmt.Sprintf("scoringStrategy.networks[%d]", i)
		switch {
		case network.Name == "":
			errs = append(errs, fmt.Errorf("%s: name is missing", where))
		case slices.ContainsFunc(a.ScoringStrategy.Networks[:i], func(other NetworkWeight) bool { return other.Name == network.Name }):
			errs = append(errs, fmt.Errorf("%s: network %q is listed already", where, network.Name))
		case network.Weight < 1 || network.Weight > 100:
			errs = append(errs, fmt.Errorf("%s: network %q: weight is %d: it must be from 1 to 100", where, network.Name, network.Weight))
		}
	}
	return errors.Join(errs...)
}

func decode(raw runtime.Object) (*NetworkFitArgs, error) {
	if raw == nil {
		return &NetworkFitArgs{}, nil
	}
	unknown, ok := raw.(*runtime.Unknown)
	if !ok {
		return nil, fmt.Errorf("args have the Go type %T: this is no scheduler configuration", raw)
	}
	if unknown.ContentType != "" && unknown.ContentType != runtime.ContentTypeJSON && unknown.ContentType != runtime.ContentTypeYAML {
		return nil, fmt.Errorf("args are %s: use JSON or YAML", unknown.ContentType)
	}
	var doc document
	if err := yaml.UnmarshalStrict(unknown.Raw, &doc); err != nil {
		return nil, errors.Join(errors.New("args must be {scoringStrategy: ...}"), err)
	}
	if doc.Kind != "" && doc.Kind != kind {
		return nil, fmt.Errorf("args are of kind %q: leave the kind out, or write %s", doc.Kind, kind)
	}
	if doc.APIVersion != "" && doc.APIVersion != apiVersion {
		return nil, fmt.Errorf("args are of apiVersion %q: leave it out, or write %s", doc.APIVersion, apiVersion)
	}
	return &doc.NetworkFitArgs, nil
}

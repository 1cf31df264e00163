// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package config reads the arguments of the plugin NetworkFit as they stand
// in a KubeSchedulerConfiguration (profiles[].pluginConfig[].args).
package config

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// kind is the only kind that the arguments may name; naming none is usual.
const kind = "NetworkFitArgs"

// ScoringStrategy says which of several fitting nodes is better.
type ScoringStrategy string

const (
	// LeastUtilized spreads: the node whose requested networks have the most
	// free addresses left is best. The default.
	LeastUtilized ScoringStrategy = "LeastUtilized"
	// MostUtilized packs, so that blocks elsewhere become empty and go back.
	MostUtilized ScoringStrategy = "MostUtilized"
)

// NetworkFitArgs are the arguments of NetworkFit.
type NetworkFitArgs struct {
	// ScoringStrategy is LeastUtilized if absent.
	ScoringStrategy ScoringStrategy `json:"scoringStrategy,omitempty"`
}

// document is what the configuration file may hold: kube-scheduler fills in
// or passes through apiVersion and kind, which mean nothing to us.
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
	if err != nil {
		return nil, fmt.Errorf("reading pluginConfig of NetworkFit: %w", err)
	}
	if args.ScoringStrategy == "" {
		args.ScoringStrategy = LeastUtilized
	}
	if s := args.ScoringStrategy; s != LeastUtilized && s != MostUtilized {
		return nil, fmt.Errorf("reading pluginConfig of NetworkFit: scoringStrategy: %q is unknown: use %s or %s", s, LeastUtilized, MostUtilized)
	}
	return args, nil
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
	return &doc.NetworkFitArgs, nil
}

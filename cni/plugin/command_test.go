// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/netplane/netplane/cni/wire"
)

func TestWhatAPodsAnnotationsAskFor(t *testing.T) {
	const nad = wire.AnnotationNPWGNetworks
	for name, test := range map[string]struct {
		annotations map[string]string
		conf        config
		want        demand
		npwg        bool
	}{
		"nothing":                           {annotations: map[string]string{"other": "x"}, want: demandNone},
		"a Network":                         {annotations: map[string]string{wire.AnnotationNetworks: "data"}, want: demandNetworks},
		"a blank annotation":                {annotations: map[string]string{wire.AnnotationNetworks: " \n"}, want: demandNone},
		"a definition":                      {annotations: map[string]string{nad: "x"}, want: demandNetworks, npwg: true},
		"a definition, and a blank one":     {annotations: map[string]string{wire.AnnotationNetworks: "", nad: "x"}, want: demandNetworks, npwg: true},
		"a blank list of definitions":       {annotations: map[string]string{nad: " "}, want: demandNone},
		"a definition that Multus sees to":  {annotations: map[string]string{nad: "x"}, conf: config{UnderMultus: true}, want: demandNone},
		"both, where Multus sees to one":    {annotations: map[string]string{wire.AnnotationNetworks: "data", nad: "x"}, conf: config{UnderMultus: true}, want: demandNetworks},
		"the annotations are not passed on": {want: demandUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newCommandOf(t, nil)
			c.config.UnderMultus, c.sandbox.PodName = test.conf.UnderMultus, "p"
			if test.annotations != nil {
				raw, err := json.Marshal(test.annotations)
				if err != nil {
					t.Fatal(err)
				}
				c.config.RuntimeConfig = map[string]json.RawMessage{capabilityAnnotations: raw}
			}
			got, _, err := c.demand()
			if err != nil || got != test.want || (c.npwg != nil) != test.npwg {
				t.Errorf("got %v, %+v, %v", got, c.npwg, err)
			}
		})
	}
	c, _ := newCommandOf(t, nil)
	c.config.RuntimeConfig = map[string]json.RawMessage{capabilityAnnotations: json.RawMessage("5")}
	var known *types.Error
	if _, _, err := c.demand(); !errors.As(err, &known) || known.Code != types.ErrDecodingFailure {
		t.Errorf("got %v", err)
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func unknown(text string) runtime.Object {
	return &runtime.Unknown{Raw: []byte(text), ContentType: runtime.ContentTypeJSON}
}

func TestDecode(t *testing.T) {
	for name, test := range map[string]struct {
		raw  runtime.Object
		want ScoringStrategy
	}{
		"no args spread":        {nil, ScoringStrategy{Type: LeastUtilized}},
		"empty args spread":     {unknown("{}"), ScoringStrategy{Type: LeastUtilized}},
		"spread":                {unknown(`{"scoringStrategy":"LeastUtilized"}`), ScoringStrategy{Type: LeastUtilized}},
		"pack":                  {unknown(`{"scoringStrategy":"MostUtilized"}`), ScoringStrategy{Type: MostUtilized}},
		"with a kind":           {unknown(`{"apiVersion":"kubescheduler.config.k8s.io/v1","kind":"NetworkFitArgs"}`), ScoringStrategy{Type: LeastUtilized}},
		"YAML without its type": {&runtime.Unknown{Raw: []byte("scoringStrategy: MostUtilized")}, ScoringStrategy{Type: MostUtilized}},
		"in full":               {unknown(`{"scoringStrategy":{"type":"MostUtilized"}}`), ScoringStrategy{Type: MostUtilized}},
		"with weights only": {
			&runtime.Unknown{Raw: []byte("scoringStrategy:\n  networks:\n  - {name: data, weight: 3}\n  - {name: management, weight: 100}\n")},
			ScoringStrategy{Type: LeastUtilized, Networks: []NetworkWeight{{"data", 3}, {"management", 100}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(test.raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&NetworkFitArgs{test.want}, got); diff != "" {
				t.Errorf("args (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeNamesWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		raw  runtime.Object
		want string
	}{
		"unknown strategy":               {unknown(`{"scoringStrategy":"Random"}`), `scoringStrategy: "Random" is unknown: use LeastUtilized or MostUtilized`},
		"unknown field":                  {unknown(`{"scoringStrateggy":"MostUtilized"}`), `unknown field "scoringStrateggy"`},
		"repeated field":                 {unknown(`{"scoringStrategy":"MostUtilized","scoringStrategy":"LeastUtilized"}`), `"scoringStrategy" already set`},
		"unknown strategy in full":       {unknown(`{"scoringStrategy":{"type":"Random"}}`), `scoringStrategy: "Random" is unknown: use LeastUtilized or MostUtilized`},
		"unknown field of the strategy":  {unknown(`{"scoringStrategy":{"tpye":"MostUtilized"}}`), `unknown field "tpye"`},
		"unknown field of a weight":      {unknown(`{"scoringStrategy":{"networks":[{"name":"data","wieght":2}]}}`), `unknown field "wieght"`},
		"repeated field of the strategy": {unknown(`{"scoringStrategy":{"type":"MostUtilized","type":"LeastUtilized"}}`), `"type" already set`},
		"no weight":                      {unknown(`{"scoringStrategy":{"networks":[{"name":"data"}]}}`), `scoringStrategy.networks[0]: network "data": weight is 0: it must be from 1 to 100`},
		"too heavy":                      {unknown(`{"scoringStrategy":{"networks":[{"name":"data","weight":101}]}}`), `weight is 101: it must be from 1 to 100`},
		"no name":                        {unknown(`{"scoringStrategy":{"networks":[{"weight":1}]}}`), `scoringStrategy.networks[0]: name is missing`},
		"a network twice":                {unknown(`{"scoringStrategy":{"networks":[{"name":"data","weight":1},{"name":"data","weight":2}]}}`), `scoringStrategy.networks[1]: network "data" is listed already`},
		"a number for a strategy":        {unknown(`{"scoringStrategy":3}`), "scoringStrategy: "},
		"another version":                {unknown(`{"apiVersion":"kubescheduler.config.k8s.io/v1beta3"}`), `args are of apiVersion "kubescheduler.config.k8s.io/v1beta3": leave it out, or write kubescheduler.config.k8s.io/v1`},
		"another kind":                   {unknown(`{"kind":"NodeResourcesFitArgs"}`), `args are of kind "NodeResourcesFitArgs"`},
		"a list":                         {unknown(`[]`), "args must be {scoringStrategy: ...}"},
		"another type":                   {&v1.Pod{}, "args have the Go type *v1.Pod"},
		"protobuf":                       {&runtime.Unknown{ContentType: runtime.ContentTypeProtobuf}, "args are application/vnd.kubernetes.protobuf: use JSON or YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(test.raw)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "pluginConfig of NetworkFit") {
				t.Errorf("error %v does not say %q and where", err, test.want)
			}
		})
	}
}

func TestNetworksThatAreNotListedWeighOne(t *testing.T) {
	s := ScoringStrategy{Networks: []NetworkWeight{{"data", 3}}}
	if got := []int32{s.Weight("data"), s.Weight("management")}; got[0] != 3 || got[1] != 1 {
		t.Errorf("weights %v, want 3 and 1", got)
	}
}

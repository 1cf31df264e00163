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
		"no args spread":        {nil, LeastUtilized},
		"empty args spread":     {unknown("{}"), LeastUtilized},
		"spread":                {unknown(`{"scoringStrategy":"LeastUtilized"}`), LeastUtilized},
		"pack":                  {unknown(`{"scoringStrategy":"MostUtilized"}`), MostUtilized},
		"with a kind":           {unknown(`{"apiVersion":"kubescheduler.config.k8s.io/v1","kind":"NetworkFitArgs"}`), LeastUtilized},
		"YAML without its type": {&runtime.Unknown{Raw: []byte("scoringStrategy: MostUtilized")}, MostUtilized},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Decode(test.raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&NetworkFitArgs{ScoringStrategy: test.want}, got); diff != "" {
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
		"unknown strategy": {unknown(`{"scoringStrategy":"Random"}`), `scoringStrategy: "Random" is unknown: use LeastUtilized or MostUtilized`},
		"unknown field":    {unknown(`{"scoringStrateggy":"MostUtilized"}`), `unknown field "scoringStrateggy"`},
		"repeated field":   {unknown(`{"scoringStrategy":"MostUtilized","scoringStrategy":"LeastUtilized"}`), `"scoringStrategy" already set`},
		"another kind":     {unknown(`{"kind":"NodeResourcesFitArgs"}`), `args are of kind "NodeResourcesFitArgs"`},
		"a list":           {unknown(`[]`), "args must be {scoringStrategy: ...}"},
		"another type":     {&v1.Pod{}, "args have the Go type *v1.Pod"},
		"protobuf":         {&runtime.Unknown{ContentType: runtime.ContentTypeProtobuf}, "args are application/vnd.kubernetes.protobuf: use JSON or YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(test.raw)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "pluginConfig of NetworkFit") {
				t.Errorf("error %v does not say %q and where", err, test.want)
			}
		})
	}
}

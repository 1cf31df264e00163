// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"encoding/json"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestSignPod(t *testing.T) {
	elsewhere := makePod("p", "data")
	elsewhere.Namespace = "other"
	host := makePod("p", "data")
	host.Spec.HostNetwork = true
	pl := newPlugin(t)
	sign := func(pod *v1.Pod) string {
		t.Helper()
		fragments, status := pl.SignPod(t.Context(), pod)
		if !status.IsSuccess() {
			return "unsigned"
		}
		text, err := json.Marshal(fragments)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, test := range map[string]struct {
		a, b *v1.Pod
		same bool
	}{
		"pods without networks are alike":                 {makePod("a", ""), makePod("b", ""), true},
		"order and names of interfaces do not matter":     {makePod("a", "data@eth1,management@eth0"), makePod("b", "management,data"), true},
		"networks matter":                                 {makePod("a", "data"), makePod("b", "management"), false},
		"how often matters":                               {makePod("a", "data"), makePod("b", "data,data"), false},
		"having none matters":                             {makePod("a", "data"), makePod("b", ""), false},
		"the namespace matters, a network may look at it": {makePod("a", "data"), elsewhere, false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sign(test.a), sign(test.b)
			if a == "unsigned" || b == "unsigned" {
				t.Fatalf("signatures %s and %s: both must be signed", a, b)
			}
			if (a == b) != test.same {
				t.Errorf("signatures %s and %s: same is %v, want %v", a, b, a == b, test.same)
			}
		})
	}
	for name, pod := range map[string]*v1.Pod{
		"malformed":       makePod("p", "data@eth1,data@eth1"),
		"fixed addresses": makePod("p", "- {name: data, ips: [10.0.0.1]}"),
		"host network":    host,
	} {
		if got := sign(pod); got != "unsigned" {
			t.Errorf("%s: signature %s, want none", name, got)
		}
	}
}

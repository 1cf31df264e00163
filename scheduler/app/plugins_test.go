// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package app

import (
	"testing"

	"k8s.io/kubernetes/pkg/scheduler/apis/config"
)

func TestEnables(t *testing.T) {
	set := config.PluginSet{Enabled: []config.Plugin{{Name: "Other"}, {Name: "NetworkFit"}}}
	for name, test := range map[string]struct {
		plugins *config.Plugins
		want    bool
	}{
		"at one extension point":  {&config.Plugins{Filter: set}, true},
		"at all extension points": {&config.Plugins{MultiPoint: set}, true},
		"disabled":                {&config.Plugins{MultiPoint: config.PluginSet{Disabled: set.Enabled}}, false},
		"nowhere":                 {&config.Plugins{}, false},
		"no plugins at all":       {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			profiles := []config.KubeSchedulerProfile{{SchedulerName: "first"}, {SchedulerName: "second", Plugins: test.plugins}}
			if got := enables(profiles, "NetworkFit"); got != test.want {
				t.Errorf("enables says %v, want %v", got, test.want)
			}
		})
	}
}

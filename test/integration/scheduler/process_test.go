// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// unbatched are the profiles without batching, as the scheduler says when it starts.
func unbatched(p *schedulerprocess.Process) []string {
	var out []string
	for line := range strings.Lines(p.Log()) {
		if strings.Contains(line, "Disabling signatures for profile") {
			_, profile, _ := strings.Cut(line, `profile="`)
			profile, _, _ = strings.Cut(profile, `"`)
			out = append(out, profile)
		}
	}
	return out
}

// ownServer starts an API server for one test.
func ownServer(t *testing.T, options ...apiserver.Option) (*rest.Config, client.Client) {
	t.Helper()
	config := apiserver.Start(t, options...)
	api, err := prepare(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return config, api
}

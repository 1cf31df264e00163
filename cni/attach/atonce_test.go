// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"encoding/json"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/netplane/netplane/cni/wire"
)

func (w *world) call(t *testing.T, request wire.Request) (*wire.Response, error) {
	t.Helper()
	return w.dial(t).Call(t.Context(), request)
}

// commit is the server's for a binary that merges the result with others'.
func (w *world) commit(ctx context.Context, sandbox *wire.Sandbox, all []wanted, network *wire.DefaultNetwork) (*Sandbox, json.RawMessage, error) {
	return w.Server.commit(ctx, sandbox, all, network, current.ImplementedSpecVersion)
}

func TestAddAtOnce(t *testing.T) {
	for name, test := range map[string]struct {
		networks, version string
		whole             bool
	}{
		"a Network on eth0":                   {networks: both, version: "1.0.0", whole: true},
		"the same for an older configuration": {networks: both, version: "0.4.0", whole: true},
		"beside the default network":          {networks: "data@net1", version: "1.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			w := serving(t)
			adding := w.dial(t)
			response, err := adding.Call(t.Context(), wire.Request{Op: wire.OpPrepare, Sandbox: sandboxOf("c1"), Networks: test.networks, AtOnce: true, CNIVersion: test.version})
			if err != nil {
				t.Fatal(err)
			}
			if !test.whole {
				if !response.DefaultNetwork || response.Result != nil || len(w.files(t)) > 0 {
					t.Errorf("got %+v with the records %v", response, w.files(t))
				}
				return
			}
			var result struct {
				CNIVersion string           `json:"cniVersion"`
				Interfaces []map[string]any `json:"interfaces"`
			}
			if err := json.Unmarshal(response.Result, &result); err != nil || result.CNIVersion != test.version || len(result.Interfaces) == 0 {
				t.Errorf("got %s, %v", response.Result, err)
			}
			_ = adding.Close()                          // it was answered: nothing is undone
			for _, alone := range []bool{true, false} { // the second time nothing is known of it
				response, err := w.call(t, wire.Request{Op: wire.OpDel, Sandbox: sandboxOf("c1")})
				if err != nil || response.Alone != alone {
					t.Errorf("DEL: got %+v, %v, want alone %v", response, err, alone)
				}
			}
		})
	}
}

func TestDelBesideTheDefaultNetworkIsNotAlone(t *testing.T) {
	w := serving(t, func(w *world) {
		if err := w.add(t.Context(), "c1", "data@net1"); err != nil {
			t.Fatal(err)
		}
	})
	response, err := w.call(t, wire.Request{Op: wire.OpDel, Sandbox: sandboxOf("c1")})
	if err != nil || response.Alone {
		t.Errorf("got %+v, %v", response, err)
	}
}

func TestCallerThatGoesDuringAddAtOnceLeavesNothing(t *testing.T) {
	w := serving(t)
	w.leavesNothing(t, w.dial(t), wire.Request{Op: wire.OpPrepare, Sandbox: sandboxOf("c1"), Networks: both, AtOnce: true, CNIVersion: "1.0.0"})
}

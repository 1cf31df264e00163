// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/http"

	"sigs.k8s.io/controller-runtime/pkg/healthz"
)

// registerProbes adds liveness, which says that the process answers, and
// readiness, from which the controller makes the condition AgentReady: a node
// whose agent is not ready takes no pods with networks.
func registerProbes(a *agent) error {
	if err := a.mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("adding the liveness check: %w", err)
	}
	if err := a.mgr.AddReadyzCheck("cni", a.ready); err != nil {
		return fmt.Errorf("adding the readiness check: %w", err)
	}
	return nil
}

// ready says why the agent cannot serve a pod now.
func (a *agent) ready(request *http.Request) error {
	if !a.serving.Load() {
		return errors.New("the agent is still starting: see its log for what it waits for")
	}
	if err := a.dial(request.Context()); err != nil {
		return fmt.Errorf("the CNI socket does not answer: %w", err)
	}
	return nil
}

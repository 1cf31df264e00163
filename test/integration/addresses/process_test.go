// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/netplane/netplane/api/v1alpha1"
)

// process is a controller-runtime manager that can be killed at any moment. The
// original waits for its caches before it looks at its context, and without an
// API server that is for ever.
type process struct {
	ctrl.Manager
	parts []manager.Runnable
}

// newProcess makes a manager whose calls go over a line of the world.
func (w *world) newProcess(name string, l *line, objects map[client.Object]cache.ByObject) (*process, error) {
	connection := rest.CopyConfig(w.connection)
	connection.QPS = -1
	connection.Wrap(l.wrap)
	skip := true
	mgr, err := ctrl.NewManager(connection, ctrl.Options{
		Scheme:         w.scheme,
		Logger:         w.log.logger(name),
		MapperProvider: w.mapper,
		Metrics:        server.Options{BindAddress: "0"},
		Controller:     config.Controller{SkipNameValidation: &skip},
		Cache:          cache.Options{ByObject: objects},
	})
	if err != nil {
		return nil, fmt.Errorf("making the manager of %s: %w", name, err)
	}
	return &process{Manager: mgr}, nil
}

// Add takes a controller.
func (p *process) Add(part manager.Runnable) error {
	p.parts = append(p.parts, part)
	return nil
}

// Start runs caches and controllers until ctx ends, or one of them does.
func (p *process) Start(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.GetCache().Start(ctx) })
	for _, part := range p.parts {
		group.Go(func() error { return part.Start(ctx) })
	}
	return group.Wait()
}

// watched are the kinds that an agent's parts read.
func watched() []client.Object {
	return []client.Object{&corev1.Node{}, &corev1.Pod{}, &v1alpha1.Network{}, &v1alpha1.NodeNetwork{}, &v1alpha1.IPBlock{}}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// failingPeriod is how long writes of a Service's slices fail before its
	// condition says so: a conflict, or an API server that starts anew, is over
	// by then. The library's errors do not tell them from a refusal.
	failingPeriod = 2 * time.Second
	// handOverRetry is how long a hand-over waits after an error at most. The
	// queue's own back-off grows beyond all periods of hand-overs.
	handOverRetry = 5 * time.Second
	// refusedRetry is how long we wait to ask for a child again that the API
	// server refused: no watch tells of a quota that was raised.
	refusedRetry = 30 * time.Second
)

// failing remembers since when a Service's slices cannot be written.
type failing struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	since map[types.NamespacedName]time.Time
}

func newFailing(c clock.PassiveClock) *failing {
	return &failing{clock: c, since: map[types.NamespacedName]time.Time{}}
}

// lasts notes how a write went, and tells whether it has failed for so long
// that somebody should know.
func (f *failing) lasts(svc types.NamespacedName, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.since, svc)
		return false
	}
	since, known := f.since[svc]
	if !known {
		since = f.clock.Now()
		f.since[svc] = since
	}
	return f.clock.Since(since) >= failingPeriod
}

// incomplete is the problem that slices could not be written. Its text is the
// same for the same errors, in whatever order they came.
func incomplete(err error) problem {
	var texts []string
	for _, one := range flatten(err) {
		texts = append(texts, one.Error())
	}
	slices.Sort(texts)
	return problem{v1alpha1.ReasonEndpointsIncomplete, "not all endpoints could be written, so that what was published before stays: " + strings.Join(slices.Compact(texts), "; ")}
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	var parts []error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		parts = joined.Unwrap()
	}
	var aggregate utilerrors.Aggregate
	if errors.As(err, &aggregate) && parts == nil {
		parts = aggregate.Errors()
	}
	if parts == nil {
		return []error{err}
	}
	var out []error
	for _, part := range parts {
		out = append(out, flatten(part)...)
	}
	return out
}

// isRefused tells an error that comes again until somebody changes something:
// a quota, a policy or a webhook is against it.
func isRefused(err error) bool {
	return !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) &&
		(apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err))
}

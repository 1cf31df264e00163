// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// server answers every list with the version of its turn, the last one for ever.
type server struct {
	client.Reader
	versions []string
	err      error
	asked    int
	end      context.CancelFunc // called after the last answer
}

func (s *server) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.SetResourceVersion(s.versions[min(s.asked, len(s.versions)-1)])
	if s.asked++; s.asked >= len(s.versions)+1 {
		s.end()
	}
	return s.err
}

func TestACacheThatIsAheadOfTheAPIServerEndsTheController(t *testing.T) {
	tests := []struct {
		name     string
		cache    string
		versions []string
		err      error
		want     error
	}{
		{"the server is as far", "100", []string{"100"}, nil, nil},
		{"the server is further", "100", []string{"101"}, nil, nil},
		{"the server was set back before the start", "100", []string{"99"}, nil, errRewound},
		{"the server is set back later", "100", []string{"100", "101", "99"}, nil, errRewound},
		{"the server does not answer", "100", []string{"1"}, errors.New("no answer"), nil},
		{"the cache is not filled", "", []string{"1"}, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			live := &server{versions: test.versions, err: test.err, end: cancel}
			c := &comparer{live: live, every: time.Millisecond, caches: []position{{v1alpha1.SchemeGroupVersion.WithKind("IPBlock"), func() string { return test.cache }}}}
			err := c.Start(ctx)
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), "IPBlocks were read up to version 100, and the API server is at 99") {
				t.Errorf("error %q does not say what was compared", err)
			}
			if live.asked < len(test.versions) {
				t.Errorf("asked %d times", live.asked)
			}
		})
	}
}

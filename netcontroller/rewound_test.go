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
		cache    []string // at each look, the last one for ever
		versions []string
		err      error
		want     error
	}{
		{"the server is as far", []string{"100"}, []string{"100"}, nil, nil},
		{"the server is further", []string{"100"}, []string{"101"}, nil, nil},
		{"the server was set back before the start", []string{"100"}, []string{"99"}, nil, errRewound},
		{"the server is set back later", []string{"100"}, []string{"100", "101", "99"}, nil, errRewound},
		{"the cache was filled anew", []string{"100", "99"}, []string{"100", "99"}, nil, errRewound},
		{"the cache was filled anew, and is further again", []string{"100", "99", "101"}, []string{"101"}, nil, nil},
		{"the server does not answer", []string{"100"}, []string{"1"}, errors.New("no answer"), nil},
		{"the cache is not filled", []string{""}, []string{"1"}, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			looks := 0
			live := &server{versions: test.versions, err: test.err, end: cancel}
			c := &comparer{live: live, every: time.Millisecond, caches: []*position{{kind: v1alpha1.SchemeGroupVersion.WithKind("IPBlock"), version: func() string {
				looks++
				return test.cache[min(looks, len(test.cache))-1]
			}}}}
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

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipam tests the address management of several nodes against a real
// API server.
package ipam

import (
	"os"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/netplane/netplane/test/integration/apiserver"
)

// apiServer is the API server that the tests of this package share; each has
// nodes and Networks of its own.
var apiServer *rest.Config

func TestMain(m *testing.M) {
	ctrllog.SetLogger(klog.Background())
	os.Exit(apiserver.Main(m, func(config *rest.Config) { apiServer = config }))
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"testing"

	"github.com/netplane/netplane/test/isolated"
)

// The API server runs in the namespaces too, and the agent under test sees
// only the NICs that the test makes.
func TestMain(m *testing.M) { os.Exit(isolated.Main(m, isolated.Loopback)) }

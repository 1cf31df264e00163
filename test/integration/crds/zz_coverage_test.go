// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package crds

import "testing"

// TestEveryRuleIsTried fails when a rule is added to a CRD without a case that
// it refuses. The file's name makes it the last one to run.
func TestEveryRuleIsTried(t *testing.T) { testEveryRuleIsTried(t) }

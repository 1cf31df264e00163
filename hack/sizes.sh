#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Fails if a Go file has more than 500 lines or a function more than 80.
set -o errexit -o nounset -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

git ls-files '*.go' | grep -v zz_generated | xargs awk '
  FNR == 1 { if (name != "" && lines > 500) { print "more than 500 lines: " name; bad = 1 } name = FILENAME; open = 0 }
  { lines = FNR }
  /^func / { start = FNR; open = 1; head = $0 }
  /^}/ { if (open && FNR - start > 80 && FILENAME !~ /_test\.go$/) { print "more than 80 lines: " FILENAME ": " head; bad = 1 } open = 0 }
  END { if (lines > 500) { print "more than 500 lines: " name; bad = 1 } exit bad }'

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/netplane/netplane/cni/wire"
)

func TestLoadRemovesHalfWrittenRecords(t *testing.T) {
	records := Sandboxes(t.TempDir())
	if err := records.Save(&Sandbox{Sandbox: wire.Sandbox{ContainerID: "whole"}}); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(string(records), "half"+partialSuffix)
	if err := os.WriteFile(half, []byte(`{"conta`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, unreadable, err := records.Load()
	if err != nil || len(unreadable) > 0 || len(got) != 1 || got[0].ContainerID != "whole" {
		t.Errorf("loaded %+v, unreadable %v, %v; want the whole record only", got, unreadable, err)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("half a record is still there (%v)", err)
	}
}

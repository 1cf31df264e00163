// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStripFor(t *testing.T) {
	const process = `{"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":null},"future":9007199254740993}`
	const stripped = `{"capabilities":{"bounding":["CAP_CHOWN"],"effective":null},"future":9007199254740993}`
	dir := t.TempDir()
	config, exec := filepath.Join(dir, "config.json"), filepath.Join(dir, "exec.json")
	tests := map[string]struct {
		args       []string
		file       string
		have, want string
	}{
		"create":             {[]string{"--root", "/r", "create", "--bundle", dir, "id"}, config, `{"process":` + process + `}`, `{"process":` + stripped + `}`},
		"run, joined flag":   {[]string{"run", "--bundle=" + dir, "id"}, config, `{"process":` + process + `}`, `{"process":` + stripped + `}`},
		"exec":               {[]string{"exec", "-p", exec, "id"}, exec, process, stripped},
		"start":              {[]string{"start", "id"}, config, process, process},
		"create, no process": {[]string{"create", "-b", dir, "id"}, config, `{"linux":{}}`, `{"linux":{}}`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(tt.file, []byte(tt.have), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := stripFor(tt.args); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestCapabilityHeld(t *testing.T) {
	for mask, want := range map[string]bool{"000001fffeffffff": false, "000001ffffffffff": true} {
		status := filepath.Join(t.TempDir(), "status")
		if err := os.WriteFile(status, []byte("Name:\tx\nCapBnd:\t"+mask+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := capabilityHeld(status)
		if err != nil || got != want {
			t.Errorf("mask %s: got %v, %v; want %v", mask, got, err, want)
		}
	}
}

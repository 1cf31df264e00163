// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestOptionsNameTheFlagThatIsWrong(t *testing.T) {
	tests := map[string]struct {
		args []string
		want []string // parts of the message; none means valid
	}{
		"defaults":                {nil, nil},
		"an interval that floods": {[]string{"--counter-interval=10ms"}, []string{"--counter-interval 10ms", "at least 1s"}},
		"a grace that is none":    {[]string{"--node-gone-grace=1s"}, []string{"--node-gone-grace 1s", "at least 10s"}},
		"all errors at once":      {[]string{"--system-namespace=", "--kube-api-qps=0"}, []string{"--system-namespace", "--kube-api-qps 0"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			opts := defaultOptions()
			flags := pflag.NewFlagSet(name, pflag.ContinueOnError)
			opts.addFlags(flags)
			if err := flags.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			err := opts.validate()
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("validate: %v", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("message %q lacks %q", err, part)
				}
			}
		})
	}
}

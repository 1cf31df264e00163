// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Command netplane is the CNI plugin that the container runtime runs.
//
// A pod that asks for no Network is handed straight to the configuration that
// the node had before, with the agent neither asked nor needed. For the others
// the binary runs that same configuration itself, in the host's own context,
// then the plugins of Networks that are not built in, and has the agent make
// the interfaces. It decides nothing about Networks.
package main

import (
	"encoding/json"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

func main() { os.Exit(run()) }

func run() int {
	var given []byte
	// noting keeps the configuration for an error, which tells its version.
	noting := func(command func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			given = args.StdinData
			return command(args)
		}
	}
	commands := skel.CNIFuncs{
		Add: noting(either(ipamAdd, add)), Del: noting(either(ipamNothing, del)), Check: noting(either(ipamNothing, check)),
		GC: noting(either(ipamNothing, gc)), Status: noting(either(ipamNothing, status)),
	}
	failed := skel.PluginMainFuncsWithError(commands, version.All, "netplane: networks for pods, see https://github.com/netplane/netplane")
	if failed == nil {
		return 0
	}
	spoken, err := new(version.ConfigDecoder).Decode(given)
	if err != nil {
		spoken = version.Current()
	}
	if err := printError(os.Stdout, spoken, failed); err != nil {
		return 2
	}
	return 1
}

// printError tells of a failure on standard output, as a CNI plugin must
// (SPEC.md, Error). The library's own form lacks the version.
func printError(out io.Writer, spoken string, err *types.Error) error {
	return json.NewEncoder(out).Encode(struct {
		CNIVersion string `json:"cniVersion"`
		Code       uint   `json:"code"`
		Msg        string `json:"msg"`
		Details    string `json:"details,omitempty"`
	}{spoken, err.Code, err.Msg, err.Details})
}

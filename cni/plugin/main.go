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
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() { os.Exit(run()) }

func run() int {
	commands := skel.CNIFuncs{
		Add: either(ipamAdd, add), Del: either(ipamNothing, del), Check: either(ipamNothing, check),
		GC: either(ipamNothing, gc), Status: either(ipamNothing, status),
	}
	err := skel.PluginMainFuncsWithError(commands, version.All, "netplane: networks for pods, see https://github.com/netplane/netplane")
	if err == nil {
		return 0
	}
	// A CNI plugin tells of its failure on standard output (SPEC.md, Error).
	if printErr := err.Print(); printErr != nil {
		return 2
	}
	return 1
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire is the protocol between the CNI binary and the node agent: JSON
// lines over a unix socket, one request and one response per line, one
// connection per CNI command.
//
// An ADD uses two rounds on one connection: Prepare (the agent checks the
// pod's right and reserves addresses), then the binary runs the cluster's
// default network and the delegates in the host's own context, then Commit (the
// agent makes the interfaces). A connection that ends between the two gives back
// what the agent reserved, but for the addresses of delegates: only OpAbort and
// OpDel tell that no interface has them.
//
// The package is linked into the binary, so it imports nothing of Kubernetes.
package wire

import (
	"encoding/json"
	"strings"
)

// Version is the protocol's; both sides refuse another one. The agent installs
// the binary, so the two differ only while an upgrade is under way.
const Version = 2

// MaxLine bounds one message: 32 interfaces with their routes are some 20 kB,
// a default network's result a few kB, a GC's list 100 B per attachment.
const MaxLine = 1 << 20

// AnnotationNetworks is the pod annotation that asks for networks; a copy of
// api/v1alpha1's, whose package the binary must not link. A test compares them.
const AnnotationNetworks = "netplane.io/networks"

// AnnotationNPWGNetworks and AnnotationMultusDefaultNetwork ask for interfaces
// by NetworkAttachmentDefinitions; copies of api/v1alpha1's, too.
const (
	AnnotationNPWGNetworks         = "k8s.v1.cni.cncf.io/networks"
	AnnotationMultusDefaultNetwork = "v1.multus-cni.io/default-network"
)

// NPWG is what a pod asks for by NetworkAttachmentDefinitions.
type NPWG struct {
	Networks string `json:"networks,omitempty"`
	// Default takes the place of the cluster's network.
	Default string `json:"default,omitempty"`
}

// NPWGOf returns nil for a pod that asks for none.
func NPWGOf(annotations map[string]string) *NPWG {
	out := NPWG{Networks: strings.TrimSpace(annotations[AnnotationNPWGNetworks]), Default: strings.TrimSpace(annotations[AnnotationMultusDefaultNetwork])}
	if out == (NPWG{}) {
		return nil
	}
	return &out
}

// Op says what a Request asks for.
type Op string

// The operations.
const (
	// OpPrepare checks the pod's right to its networks and reserves addresses.
	OpPrepare Op = "prepare"
	// OpCommit makes the interfaces that the same connection prepared.
	OpCommit Op = "commit"
	// OpAbort gives up what the same connection prepared, or failed to commit: the
	// caller has undone its own part. After a commit that succeeded, OpDel undoes.
	OpAbort Op = "abort"
	// OpDel removes all that a sandbox has.
	OpDel Op = "del"
	// OpCheck compares what a sandbox has with what it was given.
	OpCheck Op = "check"
	// OpGC removes every sandbox that is not in the list of valid attachments.
	OpGC Op = "gc"
	// OpPodNetworks returns a pod's annotation, for runtimes that do not pass it.
	OpPodNetworks Op = "pod-networks"
)

// Sandbox identifies a pod's sandbox as the runtime names it.
type Sandbox struct {
	ContainerID  string `json:"containerID"`
	NetNS        string `json:"netns,omitempty"`
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	PodUID       string `json:"podUID,omitempty"`
}

// Request is one line from the binary.
type Request struct {
	Version int     `json:"version"`
	Op      Op      `json:"op"`
	Sandbox Sandbox `json:"sandbox,omitzero"`
	// AtOnce, with OpPrepare: go on with OpCommit if the binary has nothing to run
	// in between, neither the default network nor delegates.
	AtOnce bool `json:"atOnce,omitempty"`
	// CNIVersion is that of the Result which AtOnce asks for.
	CNIVersion string `json:"cniVersion,omitempty"`
	// Networks is the pod's annotation, with OpPrepare, and NPWG what it asks for
	// beside it; one of the two may be missing.
	Networks string `json:"networks,omitempty"`
	NPWG     *NPWG  `json:"npwg,omitempty"`
	// Default is what the cluster's default network gave, with OpCommit; nil
	// if it was not used.
	Default *DefaultNetwork `json:"default,omitempty"`
	// Delegates is what the delegates gave, with OpCommit: one for each.
	Delegates []DelegateResult `json:"delegates,omitempty"`
	// Previous is what the ADD answered, as a CNI result in the version 1.1.0,
	// with OpCheck; empty if the binary is of an older release.
	Previous json.RawMessage `json:"previous,omitempty"`
	// Valid are the container IDs that the runtime still knows, with OpGC.
	Valid []string `json:"valid,omitempty"`
}

// DefaultNetwork is the result of the cluster's default network.
type DefaultNetwork struct {
	// Name is the wrapped configuration list's.
	Name string `json:"name"`
	// Result is its CNI result in the version 1.1.0.
	Result json.RawMessage `json:"result"`
}

// Response is one line from the agent.
type Response struct {
	Version int `json:"version"`
	// Error is nil on success.
	Error *Error `json:"error,omitempty"`
	// DefaultNetwork answers OpPrepare: run the cluster's default network, as
	// no Network of the pod is on eth0.
	DefaultNetwork bool `json:"defaultNetwork,omitempty"`
	// Delegates answers OpPrepare: run these one after another, after the
	// cluster's default network.
	Delegates []Delegate `json:"delegates,omitempty"`
	// Alone answers OpDel: a Network was on eth0, so that the cluster's default
	// network was never added.
	Alone bool `json:"alone,omitempty"`
	// Result answers OpCommit: our interfaces as a CNI result in the version 1.1.0.
	// It answers OpPrepare if that was all, in the version asked for.
	Result json.RawMessage `json:"result,omitempty"`
	// Networks and NPWG answer OpPodNetworks; both are empty if the pod asks for
	// no network.
	Networks string `json:"networks,omitempty"`
	NPWG     *NPWG  `json:"npwg,omitempty"`
}

// Error codes, a subset of the CNI specification's (SPEC.md, section Error).
const (
	// CodeInvalidEnvironment: what the runtime asks for in CNI_* variables is not
	// its to ask. The message names the variable.
	CodeInvalidEnvironment = 4
	// CodeDecoding: what was passed on is not what it should be.
	CodeDecoding = 6
	// CodeInvalidConfig: the pod's annotation asks for something impossible.
	CodeInvalidConfig = 7
	// CodeTryAgain: the same request may succeed later.
	CodeTryAgain = 11
	// CodeInternal: something failed that should not.
	CodeInternal = 999
)

// Error is a failure that the agent reports, in the form of a CNI error.
type Error struct {
	Code uint   `json:"code"`
	Msg  string `json:"msg"`
}

// Error returns the message, which is written for a reader of pod events.
func (e *Error) Error() string { return e.Msg }

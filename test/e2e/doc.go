// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e proves on a real kind cluster what netplane promises. Its tests
// have the build tag e2e and want the cluster that `make demo` leaves behind:
// kubectl context kind-netplane, or the one in NETPLANE_E2E_CONTEXT. The nodes
// are reached with `docker exec`, as their NICs are plugged, pulled and
// listened to. The tests run one after the other; each has a namespace of its
// own and removes what it made. Those of outage_test.go reboot a worker, stop
// the API server, containerd and agents, and fill a disk, and bring all of it
// back: they want a cluster that nobody else uses.
package e2e

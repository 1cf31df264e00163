// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package link is the one door to netlink, network namespaces, their sysctls
// and nftables. It lists and watches the node's links (Devices), makes and
// removes the interfaces of pods, bridges, and the host's path to pods whose
// eth0 is on a Network (Links). Whoever uses it declares the interface that it
// needs; Fake serves their tests and prints its state as the lines of ip(8).
//
// Every operation may be repeated: adding what is there and removing what is
// gone are no errors.
package link

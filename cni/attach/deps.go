// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package attach is the agent's side of the CNI: it serves the socket that the
// CNI binary dials, decides what a pod's interfaces are to be, has addresses
// reserved and links made, and undoes all of it when anything fails.
//
// The agent makes one Server. What a sandbox got is kept in one file each, so
// that DEL and CHECK work after a restart.
package attach

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

// Networks gives the Networks of the agent's cache.
type Networks interface {
	Get(name string) (*v1alpha1.Network, bool)
}

// Namespaces gives the labels of a namespace, for Network.spec.namespaceSelector.
type Namespaces interface {
	Labels(name string) (map[string]string, bool)
}

// Pods gives the annotations of a pod of this node; asked only for runtimes
// that do not pass them to CNI plugins.
type Pods interface {
	Annotations(namespace, name string) (map[string]string, bool)
}

// Running tells what the pods of this node ask for now, for hot plug.
type Running interface {
	// Networks is the pod's annotation netplane.io/networks, empty if it has none.
	// It is unknown if there is no such pod, or if it is about to end. Fresh asks
	// the API server: a cache may be behind what the runtime was given.
	Networks(ctx context.Context, pod types.NamespacedName, uid types.UID, fresh bool) (annotation string, known bool, err error)
	// Plugged and Refused are told what became of a changed annotation. They must
	// not block.
	Plugged(pod types.NamespacedName, uid types.UID, note string)
	Refused(pod types.NamespacedName, uid types.UID, note string)
}

// Claims gives the IPClaims whose address is a pod's, on this node.
type Claims interface {
	OfPod(uid types.UID) []*v1alpha1.IPClaim
}

// Topology is the node's inventory at one moment.
type Topology interface {
	// Parents are the NICs that back a physical network, those that are up first.
	Parents(physicalNet string) []string
	// Refusal says why this node cannot serve a Network.
	Refusal(network string) (reason, message string, refused bool)
	// Bridged says whether a NIC is in bridge mode for a Network (then macvlans
	// are made on the bridge), and why the NIC cannot serve it, if it cannot.
	Bridged(nic string, n *v1alpha1.Network) (bridged bool, refusal string)
	// Exclusive are the NICs that pods may have for themselves, those first that
	// are to be taken first; those inside pods are among them.
	Exclusive(physicalNet string) []link.Device
	// Tunnel is what the node sends a vxlan Network's frames from.
	Tunnel(network string) (link.Tunnel, bool)
}

// Addresses reserves and releases addresses of Networks.
type Addresses interface {
	Reserve(ctx context.Context, asks []ipam.Ask) ([]ipam.Lease, error)
	// Available says why Reserve could not do so at once.
	Available(asks []ipam.Ask) error
	Release(ctx context.Context, containerID string, ifnames ...string) error
	// PutAside ends a lease and keeps its address from everybody for a while.
	PutAside(lease ipam.Lease) error
}

// Prober finds out whether other hosts have addresses that nobody uses yet.
type Prober interface {
	Probe(ctx context.Context, device string, addresses []netip.Addr) ([]link.Answer, error)
}

// Taken is told when a host outside the cluster has an address that a pod was to
// get. It must not block.
type Taken interface {
	AddressTaken(pod types.NamespacedName, uid types.UID, note string)
}

// PodLinks makes, removes and checks interfaces in a pod's namespace.
type PodLinks interface {
	// Add makes interfaces that are up: all or none. An error tells of which.
	Add(ctx context.Context, netns string, specs ...link.Interface) error
	// Announce tells the neighbours who has their addresses. It may take a second.
	Announce(ctx context.Context, netns string, specs ...link.Interface) error
	// Delete removes them, the last first; what is gone already is no error.
	Delete(ctx context.Context, netns string, specs ...link.Interface) error
	// Check says in what the interface differs from spec.
	Check(ctx context.Context, netns string, spec link.Interface) error
}

// HostLinks changes the host's own links.
type HostLinks interface {
	// AddPath and RemovePath change the host's way to pods; RemovePath with
	// last removes the device too if it is a shim. Both may be repeated.
	AddPath(ctx context.Context, path link.Path) error
	RemovePath(ctx context.Context, path link.Path, last bool) error
	// Sweep removes the host's ends of pods' interfaces, and its own ways to pods,
	// that are not among those to keep; not those of a namespace that lives, by a
	// file in one of the folders. It returns what it removed, after an error too.
	Sweep(ctx context.Context, keep, folders []string) (removed []string, err error)
	// RestoreGuards makes the spoof checks those of the interfaces that want one;
	// it asks for them when it has seen what is installed.
	RestoreGuards(ctx context.Context, interfaces func() []link.Interface) error
	// KeepUntagged makes anew, or removes, what drops frames with VLAN tags of pods
	// on bridges; PodLinks.Add makes it with the first of them.
	KeepUntagged(ctx context.Context, wanted func() bool) error
	// SetMasquerade replaces all rules; none removes the table.
	SetMasquerade(ctx context.Context, networks []link.Masquerade) error
}

// Reporter publishes what a pod got on the pod itself.
type Reporter interface {
	// Attached tells what a sandbox has; nil uses mean that the record does not tell.
	Attached(pod types.NamespacedName, uid types.UID, sandboxID string, attachments []podnetworks.Attachment, uses []podnetworks.Use)
	Detached(uid types.UID, sandboxID string)
}

// Config is where the server keeps its state.
type Config struct {
	// StateDir holds agent.sock, sandboxes/ and spool/. It must be a tmpfs:
	// what it tells of does not outlive a reboot.
	StateDir string
	// PodCIDRs are the ranges of the cluster's own pod addresses, which keep
	// their way when a Network takes a pod's default route.
	PodCIDRs []netip.Prefix
	// NADPluginTypes are the CNI plugin types that NetworkAttachmentDefinitions,
	// which tenants write, may run on the node; none allows none of these objects.
	NADPluginTypes []string
	// NADNamespaceIsolation lets pods use those of their own namespace, and of
	// NADGlobalNamespaces, only.
	NADNamespaceIsolation bool
	NADGlobalNamespaces   []string
}

// Socket is where the CNI binary finds the agent.
func (c Config) Socket() string { return filepath.Join(c.StateDir, "agent.sock") }

// Spool is where the CNI binary leaves DELs while the agent is down.
func (c Config) Spool() wire.Spool { return wire.Spool(filepath.Join(c.StateDir, "spool")) }

// Sandboxes is where the records of sandboxes are.
func (c Config) Sandboxes() string { return filepath.Join(c.StateDir, wire.SandboxFolder) }

// Deps are the parts of the agent that the server works with. All are
// required but Delegates, Definitions, Overlays, ClusterIPs, NICsChanged,
// NetNSExists and Clock.
type Deps struct {
	Networks   Networks
	Namespaces Namespaces
	Pods       Pods
	Running    Running
	Claims     Claims
	Addresses  Addresses
	PodLinks   PodLinks
	HostLinks  HostLinks
	NICs       NICs
	Parents    Parents
	Prober     Prober
	Taken      Taken
	Reporter   Reporter
	// Delegates is nil where all plugins are built in; Foreign looks after what
	// they make.
	Delegates Delegates
	Foreign   Foreign
	// Overlays may be nil: then no pod gets a Network of plugin vxlan.
	Overlays Overlays
	// Definitions is nil where NetworkAttachmentDefinitions are not served.
	Definitions Definitions
	// ClusterIPs may be nil: then no Network has serviceProxy InPod.
	ClusterIPs ClusterIPs
	// Topology returns the inventory of this moment.
	Topology func() Topology
	// ServiceCIDRs returns the ranges of ClusterIPs.
	ServiceCIDRs func() []netip.Prefix
	// NICsChanged is called when a NIC went into a pod or came back. It must not
	// block.
	NICsChanged func()
	// NetNSExists says whether a path leads to a network namespace; nil is link.Exists.
	NetNSExists func(path string) bool
	// Clock is for tests; nil is the real one.
	Clock clock.WithTicker
}

func (d *Deps) validate() error {
	for _, part := range []struct {
		name    string
		missing bool
	}{
		{"Networks", d.Networks == nil}, {"Namespaces", d.Namespaces == nil}, {"Pods", d.Pods == nil}, {"Running", d.Running == nil}, {"Claims", d.Claims == nil},
		{"Addresses", d.Addresses == nil}, {"PodLinks", d.PodLinks == nil}, {"HostLinks", d.HostLinks == nil}, {"NICs", d.NICs == nil}, {"Parents", d.Parents == nil},
		{"Foreign", d.Delegates != nil && d.Foreign == nil},
		{"Prober", d.Prober == nil}, {"Taken", d.Taken == nil}, {"Reporter", d.Reporter == nil}, {"Topology", d.Topology == nil}, {"ServiceCIDRs", d.ServiceCIDRs == nil},
	} {
		if part.missing {
			return errors.New("attach.Deps." + part.name + " is missing")
		}
	}
	return nil
}

// Bounds of what one request may take. A runtime gives a sandbox some minutes;
// a caller that hears "try again" earlier is served better.
const (
	prepareTimeout = 15 * time.Second
	commitTimeout  = 30 * time.Second
	otherTimeout   = 30 * time.Second
	collectEvery   = 30 * time.Second
)

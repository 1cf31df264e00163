// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/attach"
	"github.com/netplane/netplane/cni/install"
	"github.com/netplane/netplane/cni/inventory"
	"github.com/netplane/netplane/cni/ipam"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/overlay"
	"github.com/netplane/netplane/cni/report"
	"github.com/netplane/netplane/cni/serviceproxy"
)

const (
	journalFile = "addresses.journal"
	versionFile = "apiserver.json"
	// socketPoll and socketWait bound the wait for the server's socket before
	// the CNI configuration names it.
	socketPoll, socketWait = 20 * time.Millisecond, time.Minute
	// dialTimeout bounds a readiness probe's look at the socket.
	dialTimeout = time.Second
)

// agent is all that runs on a node.
type agent struct {
	mgr        ctrl.Manager
	socket     string
	devices    *link.Devices
	links      *link.Links
	addresses  *ipam.Manager
	collector  *ipam.Collector
	held       held
	inventory  *inventory.Inventory
	overlays   *overlay.Manager
	clusterIPs *serviceproxy.Manager
	reporter   *report.Reporter
	server     *attach.Server
	installer  *install.Installer
	// namespaces and watched are what the agent has copies of; see follow.
	namespaces *namespaces
	watched    watched
	nodeName   string
	// uninstalling has the agent take the CNI configuration away instead.
	uninstalling bool

	// serving is set when the whole start is done.
	serving atomic.Bool
}

// newAgent makes the parts and has the manager run them; nothing runs before
// the manager does.
//
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch
// +kubebuilder:rbac:groups=netplane.io,resources=ipclaims,verbs=get;list;watch
func newAgent(mgr ctrl.Manager, opts *options) (_ *agent, err error) {
	a := &agent{mgr: mgr, nodeName: opts.nodeName, uninstalling: opts.uninstall}
	made := false
	defer func() {
		if !made {
			a.close()
		}
	}()
	if err := a.makeParts(opts); err != nil {
		return nil, err
	}
	if err := a.makeServer(opts); err != nil {
		return nil, err
	}
	if err := a.register(); err != nil {
		return nil, err
	}
	made = true
	return a, nil
}

func (a *agent) makeParts(opts *options) (err error) {
	if a.devices, err = link.OpenDevices("", link.HostSysfs()); err != nil {
		return err
	}
	if a.links, err = link.Open(link.Config{ProcSys: opts.hostProcSys}); err != nil {
		return err
	}
	a.addresses = ipam.New(ipam.Config{JournalPath: filepath.Join(opts.stateDir, journalFile)})
	counters, err := ipam.NewMetrics(metrics.Registry, a.addresses)
	if err != nil {
		return err
	}
	claimer := ipam.NewClaimer(ipam.ClaimerConfig{
		NodeName: opts.nodeName, VersionFile: filepath.Join(opts.stateDir, versionFile),
	}, ipam.ClaimerDeps{
		Client: a.mgr.GetClient(), Live: a.mgr.GetAPIReader(), Manager: a.addresses, Metrics: counters,
		Events: a.mgr.GetEventRecorder(v1alpha1.FieldOwnerAgent),
		Tunnel: func(network string) netip.Addr { return tunnelAddress(a.inventory.Current(), network) },
	})
	if err := claimer.SetupWithManager(a.mgr); err != nil {
		return err
	}
	a.collector = &ipam.Collector{Manager: a.addresses}
	a.reporter = report.New(a.mgr.GetClient(), a.mgr.GetClient())
	// What changes held addresses: leases, and pods that come and go.
	a.held = held{manager: a.addresses, pods: newLivingPods(clock.RealClock{}, func() { a.inventory.NotifyHeld() })}
	a.inventory, err = inventory.New(
		inventory.Config{NodeName: opts.nodeName, MapFile: opts.mapFile, CNIDirs: []string{opts.cniConfDir, opts.cniBinDir}},
		inventory.Deps{
			Links: a.devices, Bridges: a.links, Held: a.held, Pods: onLinks{a}, Delegates: opts.delegates(),
			Client: a.mgr.GetClient(), Clock: clock.RealClock{},
			TunnelsChanged: func() { claimer.LookAgain(); a.overlays.Notify() },
		})
	if err != nil {
		return fmt.Errorf("making the inventory: %w", err)
	}
	a.addresses.Subscribe(func(string, bool) { a.inventory.NotifyHeld() })
	a.makeOverlays(opts)
	a.makeClusterIPs(opts.nodeName)
	return nil
}

func (a *agent) makeServer(opts *options) (err error) {
	fixed, err := opts.servicePrefixes()
	if err != nil {
		return err
	}
	podCIDRs, err := opts.podPrefixes()
	if err != nil {
		return err
	}
	config := attach.Config{StateDir: opts.stateDir, PodCIDRs: podCIDRs, NADPluginTypes: opts.nadTypes, NADNamespaceIsolation: opts.nadIsolation, NADGlobalNamespaces: opts.nadGlobal}
	a.socket = config.Socket()
	reader := a.mgr.GetClient()
	a.namespaces = &namespaces{caches: a.mgr.GetCache()}
	a.server, err = attach.NewServer(config, attach.Deps{
		Networks:     networks{reader},
		Namespaces:   a.namespaces,
		Pods:         pods{reader},
		Running:      running{cached: reader, live: a.mgr.GetAPIReader(), recorder: a.mgr.GetEventRecorder(v1alpha1.FieldOwnerAgent)},
		Claims:       claims{reader},
		Addresses:    a.addresses,
		PodLinks:     a.links,
		HostLinks:    a.links,
		NICs:         a.links,
		NICsChanged:  a.inventory.Notify,
		Parents:      a.links,
		Prober:       a.links,
		Delegates:    opts.delegates(),
		Foreign:      a.links,
		Definitions:  definitions{a.mgr.GetAPIReader()},
		Taken:        taken{reader, a.mgr.GetEventRecorder(v1alpha1.FieldOwnerAgent)},
		Reporter:     a.reporter,
		Overlays:     a.overlays,
		ClusterIPs:   a.clusterIPs,
		Topology:     func() attach.Topology { return a.inventory.Current() },
		ServiceCIDRs: serviceCIDRs{reader: reader, fixed: fixed}.list,
	})
	if err != nil {
		return fmt.Errorf("making the CNI server: %w", err)
	}
	a.installer, err = install.New(install.Config{
		Source: opts.pluginSource, BinDir: opts.cniBinDir, ConfDir: opts.cniConfDir,
		Socket: a.socket, SpoolDir: string(config.Spool()), Journal: filepath.Join(opts.stateDir, journalFile),
		Bypassed: a.inventory.Bypassed,
	})
	if err != nil {
		return fmt.Errorf("making the installer: %w", err)
	}
	return nil
}

// register adds the start sequence, the probes and the metrics to the manager.
func (a *agent) register() error {
	if err := a.mgr.Add(manager.RunnableFunc(a.run)); err != nil {
		return fmt.Errorf("registering the agent: %w", err)
	}
	return errors.Join(registerProbes(a), registerMetrics(a))
}

// recallConflicts goes on with what the former agent said of blocks that other
// nodes have.
func (a *agent) recallConflicts(ctx context.Context) error {
	var published v1alpha1.NodeNetwork
	err := a.mgr.GetClient().Get(ctx, client.ObjectKey{Name: a.nodeName}, &published)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("reading which blocks other nodes have: %w", err)
	}
	a.addresses.Recall(published.Status.Conflicts)
	return nil
}

// close frees what newAgent opened.
func (a *agent) close() {
	if a.addresses != nil {
		if err := a.addresses.Close(); err != nil {
			klog.Background().Error(err, "Closing the address journal failed")
		}
	}
	if a.links != nil {
		a.links.Close()
	}
	if a.devices != nil {
		a.devices.Close()
	}
}

// run brings the agent up in an order that never promises what does not hold
// yet, and then runs until ctx ends: caches, the addresses and sandboxes of
// before, what came while no agent served, the node's offer, the socket, and
// the CNI configuration last.
func (a *agent) run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	if err := a.follow(ctx); err != nil {
		return err
	}
	if err := a.addresses.Replay(ipam.NamespaceExists); err != nil {
		return err
	}
	logger.Info("Replayed the address journal", "leases", len(a.addresses.Leases()))
	if err := a.recallConflicts(ctx); err != nil {
		return err
	}
	if err := a.server.ReplaySpool(ctx); err != nil {
		return fmt.Errorf("replaying what came while no agent served: %w", err)
	}
	if err := a.inventory.Sync(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop: what was under way does not matter
		}
		return fmt.Errorf("publishing the node's inventory: %w", err)
	}
	logger.Info("Published the node's inventory", "physicalNetworks", len(a.inventory.Current().PhysicalNetworks()))

	a.held.pods.serve()
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"inventory", a.inventory.Run}, {"report", a.reporter.Run}, {"garbage", a.collector.Start},
		{"overlay", a.overlays.Run}, {"clusterips", a.clusterIPs.Run}, {"attach", a.server.Run}, {"install", a.install}, {"ready", a.markReady},
	} {
		group.Go(func() error {
			if err := part.run(klog.NewContext(ctx, logger.WithName(part.name))); err != nil {
				return fmt.Errorf("running %s: %w", part.name, err)
			}
			return nil
		})
	}
	err := group.Wait()
	if a.uninstalling {
		a.server.Leave(context.WithoutCancel(ctx))
	}
	return err
}

// follow subscribes to what the inventory depends on and waits until every
// cache that the parts read without a context of their own is filled.
func (a *agent) follow(ctx context.Context) error {
	caches := a.mgr.GetCache()
	ofNode, err := caches.GetInformer(ctx, &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watching pods: %w", err)
	}
	a.watched.add(&corev1.Pod{}, ofNode)
	synced, err := a.held.pods.follow(ofNode)
	if err != nil {
		return err
	}
	if err := followNetworks(ctx, caches, a.server.PodChanged); err != nil {
		return err
	}
	for _, f := range []struct {
		obj     client.Object
		changed func()
	}{
		{&corev1.Node{}, a.inventory.Notify},
		{&v1alpha1.Network{}, func() { a.networksChanged(ctx) }},
		{&v1alpha1.PhysicalNetwork{}, a.inventory.Notify},
		{&v1alpha1.NodeNetwork{}, a.inventory.NotifyHeld},
		{&v1alpha1.IPBlock{}, func() {}},
		{&v1alpha1.IPClaim{}, func() {}},
		{&networkingv1.ServiceCIDR{}, func() {}},
	} {
		informer, err := follow(ctx, caches, f.obj, f.changed)
		if err != nil {
			return err
		}
		a.watched.add(f.obj, informer)
	}
	if !caches.WaitForCacheSync(ctx) || !toolscache.WaitForCacheSync(ctx.Done(), synced) {
		return fmt.Errorf("filling the caches: %w", ctx.Err())
	}
	if err := a.namespaces.adapt(ctx); err != nil {
		return err
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), a.namespaces.filled) {
		return fmt.Errorf("filling the cache of Namespaces: %w", ctx.Err())
	}
	return nil
}

// cached is how many objects of each kind the agent has copies of.
func (a *agent) cached() map[string]int {
	out := a.watched.counts()
	if informer := a.namespaces.watching(); informer != nil {
		out[kindOf(&corev1.Namespace{})] = size(informer)
	}
	return out
}

func (a *agent) networksChanged(ctx context.Context) {
	a.inventory.Notify()
	a.overlays.Notify()
	a.clusterIPs.Notify()
	if err := a.namespaces.adapt(ctx); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Networks with a namespaceSelector may refuse pods")
	}
}

// install writes the CNI configuration once there is somebody to answer, or
// takes it away.
func (a *agent) install(ctx context.Context) error {
	deadline := time.Now().Add(socketWait)
	for {
		err := a.dial(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop: what was under way does not matter
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waiting for the CNI server: %w", err)
		}
		time.Sleep(socketPoll)
	}
	if a.uninstalling {
		return a.uninstall(ctx)
	}
	return a.installer.Run(ctx)
}

// markReady ends the start: from here on the node takes pods with networks.
func (a *agent) markReady(ctx context.Context) error {
	select {
	case <-a.installer.Installed():
		a.serving.Store(true)
		klog.FromContext(ctx).Info("Serving")
		if err := forgetStart(); err != nil {
			klog.FromContext(ctx).Error(err, "Kept the memory that the start took")
		}
	case <-ctx.Done():
	}
	return nil
}

func (a *agent) dial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
	if err != nil {
		return err
	}
	return connection.Close()
}

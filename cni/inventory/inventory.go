// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

const (
	// publishEvery is the time between two writes of the status while it keeps
	// changing, see pace.
	publishEvery = time.Second
	// lookEvery is how often the held addresses and the map file are looked at.
	lookEvery = time.Second
	// rereadEvery covers what nobody tells: kernel modules loaded later.
	rereadEvery = 30 * time.Second
	// watchRetry is the pause before a broken subscription is made anew.
	watchRetry = time.Second
	// retryFirst and retryLast bound the pause after a failed write: 1, 2, 4,
	// 8, 15 s.
	retryFirst, retryLast = time.Second, 15 * time.Second
)

// Links is what the inventory needs of the kernel; link.Devices is it.
type Links interface {
	List() ([]link.Device, error)
	Watch(ctx context.Context) (<-chan struct{}, error)
	Supports(kind string) (bool, error)
}

// HeldSource tells what others must know of the node's addresses.
type HeldSource interface {
	// Held are those that no living pod accounts for.
	Held() []v1alpha1.HeldAddresses
	// Conflicts are blocks that another node has, too.
	Conflicts() []v1alpha1.BlockConflict
}

// Bridges puts a NIC back into the bridge that netplane made of it.
type Bridges interface {
	EnsureParent(ctx context.Context, spec link.ParentSpec) (link.Parent, error)
}

// Config is what the inventory is told.
type Config struct {
	// NodeName is the Node's, and the NodeNetwork's.
	NodeName string
	// MapFile is the path of the node's own map; it need not exist.
	MapFile string
	// CNIDirs are the node's CNI folders: what is installed there decides which
	// plugins that are not built in it can run.
	CNIDirs []string
}

// Deps are what the inventory works with.
type Deps struct {
	Links Links
	// Bridges may be nil: then a NIC that was pulled out and has come back
	// waits for the next pod.
	Bridges Bridges
	Held    HeldSource
	// Delegates may be nil: then no Network is refused for its plugin.
	Delegates Delegates
	// Pods may be nil: then no pod has anything of the host's links.
	Pods Pods
	// TunnelsChanged is called when what vxlan Networks send from is another. It
	// must not block, and may be nil.
	TunnelsChanged func()
	// Client reads Node, NodeNetwork, PhysicalNetworks and Networks (from
	// caches) and writes the NodeNetwork.
	Client client.Client
	Clock  clock.WithTicker
}

// Inventory follows links, map file and API objects, and keeps the Snapshot
// and the NodeNetwork true to them.
type Inventory struct {
	config    Config
	deps      Deps
	publisher publisher
	current   atomic.Pointer[Snapshot]

	relist chan struct{}
	held   chan struct{}

	uninstalled atomic.Bool
	bypassed    atomic.Value // string

	// Below is used by one goroutine at a time: Sync, then Run.
	lastMap     *Map
	mapErr      error
	unavailable map[string]bool // by link kind that some Network needs
	probed      time.Time
}

// New makes an Inventory; nothing runs before Sync or Run.
func New(config Config, deps Deps) (*Inventory, error) {
	var problems []error
	if config.NodeName == "" {
		problems = append(problems, errors.New("the node's name is missing"))
	}
	if config.MapFile == "" {
		problems = append(problems, errors.New("the map file's path is missing"))
	}
	if deps.Links == nil || deps.Held == nil || deps.Client == nil || deps.Clock == nil {
		problems = append(problems, errors.New("links, held, client and clock are all needed"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return &Inventory{
		config:    config,
		deps:      deps,
		publisher: publisher{client: deps.Client, clock: deps.Clock, nodeName: config.NodeName},
		relist:    make(chan struct{}, 1),
		held:      make(chan struct{}, 1),
	}, nil
}

// Current returns the newest Snapshot; nil before the first Sync.
func (i *Inventory) Current() *Snapshot { return i.current.Load() }

// Notify says that something which the inventory depends on may have changed.
// It never blocks.
func (i *Inventory) Notify() { signal(i.relist) }

// Uninstalled has the node refuse all Networks from now on, because the runtime
// does not call netplane any more. It never blocks.
func (i *Inventory) Uninstalled() {
	i.uninstalled.Store(true)
	i.Notify()
}

// Bypassed has the node refuse all Networks as long as the runtime takes that file
// of its CNI configurations, and not ours; an empty name says that it takes ours.
// It never blocks.
func (i *Inventory) Bypassed(by string) {
	if before, _ := i.bypassed.Swap(by).(string); before != by {
		i.Notify()
	}
}

// NotifyHeld says that held addresses may have changed. It never blocks.
func (i *Inventory) NotifyHeld() { signal(i.held) }

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // a signal is already waiting
	}
}

// Sync reads everything once and publishes it, trying again until it succeeds
// or ctx ends. It is called before Run.
func (i *Inventory) Sync(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		err := i.refresh(ctx)
		if err == nil {
			err = i.publish(ctx)
		}
		if err == nil {
			return nil
		}
		logger.Info("The node's inventory is not published yet", "err", err, "retryIn", pause)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-i.deps.Clock.After(pause):
		}
	}
}

// Run follows all changes until ctx ends.
func (i *Inventory) Run(ctx context.Context) error {
	var watchers sync.WaitGroup
	defer watchers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchers.Go(func() { i.watchLinks(ctx) })

	reread := i.deps.Clock.NewTicker(rereadEvery)
	defer reread.Stop()
	look := i.deps.Clock.NewTicker(lookEvery)
	defer look.Stop()
	watched := []mapWatch{{path: i.config.MapFile}}
	for _, dir := range i.config.CNIDirs {
		watched = append(watched, mapWatch{path: dir})
	}
	pace := newPace(i.deps.Clock)
	for {
		changed := true
		select {
		case <-ctx.Done():
			return nil
		case <-reread.C():
		case <-i.relist:
		case <-i.held:
			changed = false
		case <-look.C():
			changed = anyChanged(watched)
		case <-pace.due():
			changed = false
		}
		i.step(ctx, changed, pace)
	}
}

// step brings the Snapshot up to date and publishes it when its time has come.
func (i *Inventory) step(ctx context.Context, relist bool, pace *pace) {
	logger := klog.FromContext(ctx)
	if relist {
		if err := i.refresh(ctx); err != nil {
			logger.Info("Reading the node's inventory failed; the last one stays in force", "err", err)
		}
	}
	if !pace.mayWrite() {
		return
	}
	wrote, err := i.publishIfChanged(ctx)
	switch {
	case err != nil:
		logger.Info("Publishing the NodeNetwork failed", "err", err, "retryIn", pace.failed())
	case wrote:
		pace.wrote()
	}
}

func (i *Inventory) watchLinks(ctx context.Context) {
	logger := klog.FromContext(ctx)
	for ctx.Err() == nil {
		changes, err := i.deps.Links.Watch(ctx)
		if err != nil {
			logger.Info("Watching links failed", "err", err, "retryIn", watchRetry)
		} else {
			for range changes {
				i.Notify()
			}
		}
		select {
		case <-ctx.Done():
		case <-i.deps.Clock.After(watchRetry):
		}
	}
}

// refresh makes a new Snapshot from all that can be read.
func (i *Inventory) refresh(ctx context.Context) error {
	var in Input
	var node corev1.Node
	if err := i.deps.Client.Get(ctx, types.NamespacedName{Name: i.config.NodeName}, &node); err != nil {
		return fmt.Errorf("reading the Node: %w", err)
	}
	in.NodeLabels = node.Labels
	var physical v1alpha1.PhysicalNetworkList
	if err := i.deps.Client.List(ctx, &physical); err != nil {
		return fmt.Errorf("listing PhysicalNetworks: %w", err)
	}
	var networks v1alpha1.NetworkList
	if err := i.deps.Client.List(ctx, &networks); err != nil {
		return fmt.Errorf("listing Networks: %w", err)
	}
	devices, err := i.deps.Links.List()
	if err != nil {
		return err
	}
	in.PhysicalNetworks, in.Networks, in.Devices = physical.Items, networks.Items, devices
	in.NotInstalled, in.Uninstalled = i.notInstalled(networks.Items), i.uninstalled.Load()
	in.BypassedBy, _ = i.bypassed.Load().(string)
	if i.deps.Pods != nil {
		in.InPods, in.Parents = i.deps.Pods.NICsInPods(), i.deps.Pods.Parents()
	}
	in.Unavailable = i.probeKinds(ctx, in.Networks)
	in.Map = i.readMap(ctx)
	next := Resolve(&in)
	i.logChange(ctx, next)
	before := i.current.Swap(next)
	if i.deps.TunnelsChanged != nil && (before == nil || !maps.Equal(before.tunnels, next.tunnels)) {
		i.deps.TunnelsChanged()
	}
	i.mend(ctx, next)
	return nil
}

// mend puts NICs that have come back into their bridges: pods are still there
// and have been cut off since. A bridge follows its NIC's MTU.
func (i *Inventory) mend(ctx context.Context, s *Snapshot) {
	if i.deps.Bridges == nil {
		return
	}
	logger := klog.FromContext(ctx)
	for _, lost := range s.lost {
		bridge, err := i.deps.Bridges.EnsureParent(ctx, lost)
		if err != nil {
			logger.Error(err, "A NIC has come back, but not into its bridge: the pods there stay cut off", "nic", lost.NIC, "tag", lost.Tag)
			continue
		}
		logger.Info("A NIC has come back; put it into its bridge", "nic", lost.NIC, "tag", lost.Tag, "bridge", bridge.Name)
	}
	for _, stray := range s.stray {
		if _, err := i.deps.Bridges.EnsureParent(ctx, stray); err != nil {
			logger.Error(err, "A bridge has another MTU than its NIC", "nic", stray.NIC, "tag", stray.Tag)
		}
	}
}

// readMap returns the map in force. A file with an error never unmaps a NIC
// under running pods: the last good map stays. If there is none, the file
// still stands in the place of nodeInterfaces, and nothing is mapped.
func (i *Inventory) readMap(ctx context.Context) *Map {
	parsed, err := ReadMap(i.config.MapFile)
	if err == nil {
		i.lastMap, i.mapErr = parsed, nil
		return parsed
	}
	if i.mapErr == nil || i.mapErr.Error() != err.Error() {
		klog.FromContext(ctx).Error(err, "The node's map file has an error; the last good map stays in force")
	}
	i.mapErr = err
	if i.lastMap == nil {
		return &Map{}
	}
	return i.lastMap
}

// probeKinds asks the kernel for the kinds of links that the Networks need: to
// ask loads the kind's module. It asks again for those that were missing.
func (i *Inventory) probeKinds(ctx context.Context, networks []v1alpha1.Network) map[string]bool {
	now := i.deps.Clock.Now()
	again := now.Sub(i.probed) >= rereadEvery
	if i.unavailable == nil || again {
		i.probed = now
	}
	next := map[string]bool{}
	for n := range networks {
		for _, kind := range kindsOf(&networks[n]) {
			if _, done := next[kind]; done {
				continue
			}
			missing, known := i.unavailable[kind]
			if !known || missing && again {
				missing = i.lacks(ctx, kind)
			}
			next[kind] = missing
		}
	}
	i.unavailable = next
	return next
}

// lacks says whether the kernel cannot make links of a kind.
func (i *Inventory) lacks(ctx context.Context, kind string) bool {
	ok, err := i.deps.Links.Supports(kind)
	if err != nil {
		klog.FromContext(ctx).Info("Probing the kernel failed; taking the link kind for available", "kind", kind, "err", err)
	}
	return err == nil && !ok
}

func (i *Inventory) logChange(ctx context.Context, next *Snapshot) {
	logger := klog.FromContext(ctx)
	before := i.current.Load()
	for _, p := range next.physicalNetworks {
		if old, ok := before.physical(p.Name); !ok || old.Reason != p.Reason {
			logger.Info("Physical network", "physicalNetwork", p.Name, "interfaces", p.Interfaces, "ready", p.Ready, "reason", p.Reason)
		}
	}
	for _, p := range before.PhysicalNetworks() {
		if _, ok := next.physical(p.Name); !ok {
			logger.Info("Physical network is not mapped any more", "physicalNetwork", p.Name, "interfaces", p.Interfaces)
		}
	}
	for _, r := range next.Refused() {
		if reason, _, ok := before.Refusal(r.Network); !ok || reason != r.Reason {
			logger.Info("Refusing a Network on this node", "network", r.Network, "reason", r.Reason, "message", r.Message)
		}
	}
	for _, w := range next.warnings {
		if before == nil || !slices.Contains(before.warnings, w) {
			logger.Info("The mapping is ambiguous", "warning", w)
		}
	}
}

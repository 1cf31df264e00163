// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2/textlogger"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/netcontroller/ipblock"
	"github.com/netplane/netplane/netcontroller/network"
)

const (
	// nodeGoneGrace is the controller's, by the clock of the run.
	nodeGoneGrace   = time.Second
	counterInterval = 500 * time.Millisecond
	outageTime      = 300 * time.Millisecond
	tick            = 50 * time.Millisecond
	longestTick     = 4 * tick // what the clock goes on at once on a machine that is busy
)

func addEvents(scheme *runtime.Scheme) error { return eventsv1.AddToScheme(scheme) }

// happen does one of the cluster's events.
func (w *world) happen(e event) {
	switch e.kind {
	case eventOutage:
		w.outage.set(true)
		for _, l := range w.lines() {
			l.hangUp()
		}
		time.Sleep(outageTime)
		w.outage.set(false)
	case eventController:
		w.controller.stop()
		w.controller = startController(w)
	case eventLag:
		w.controller.line.events.set(true)
		time.Sleep(outageTime)
		w.controller.line.events.set(false)
	case eventGrow:
		w.change(e.net, func(spec *v1alpha1.NetworkSpec) {
			spec.AdditionalSubnets = append(spec.AdditionalSubnets, v1alpha1.CIDR(fmt.Sprintf("10.%d.0.0/25", 70+e.net)))
		})
	case eventExclude:
		w.change(e.net, func(spec *v1alpha1.NetworkSpec) {
			spec.ExcludeRanges = []v1alpha1.IPRange{v1alpha1.IPRange(fmt.Sprintf("10.%d.0.20-10.%d.0.60", 60+e.net, 60+e.net))}
		})
		time.Sleep(outageTime)
		w.change(e.net, func(spec *v1alpha1.NetworkSpec) { spec.ExcludeRanges = nil })
	case eventAskBack:
		w.askBack(e.net)
	case eventBackup:
		w.backup()
	case eventRollback:
		w.rollback()
	}
}

// lines are those of the agents and the controller that live now.
func (w *world) lines() []*line {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.wires)
}

func (w *world) change(index int, change func(*v1alpha1.NetworkSpec)) {
	w.admin("changing a Network", func() error {
		var network v1alpha1.Network
		if err := w.api.Get(w.ctx, client.ObjectKey{Name: w.networks[index]}, &network); err != nil {
			return err
		}
		change(&network.Spec)
		return w.api.Update(w.ctx, &network)
	})
}

// askBack deletes a block, in use or not, as an admin may.
func (w *world) askBack(index int) {
	var blocks v1alpha1.IPBlockList
	w.admin("listing blocks", func() error {
		return w.api.List(w.ctx, &blocks, client.MatchingFields{v1alpha1.FieldIPBlockNetwork: w.networks[index]})
	})
	if len(blocks.Items) == 0 {
		return
	}
	block := &blocks.Items[w.plan.seed%uint64(len(blocks.Items))]
	w.log.printf("admin: delete %s of %s", block.Name, block.Spec.NodeName)
	w.admin("deleting a block", func() error { return client.IgnoreNotFound(w.api.Delete(w.ctx, block)) })
}

// worldClock is the controller's. It stands still while something is due that
// the controller's grace gives time for: kubelets that stop the containers of
// deleted pods, and the controller's own watches. So the run never depends on
// how fast the machine is.
type worldClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *worldClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *worldClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

func (c *worldClock) run(ctx context.Context, standing func() bool) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			elapsed := min(time.Since(last), longestTick)
			last = time.Now()
			if !standing() {
				c.mu.Lock()
				c.now = c.now.Add(elapsed)
				c.mu.Unlock()
			}
		}
	}
}

// controller is one life of netplane-controller, as far as addresses go.
type controller struct {
	line *line
	stop func()
}

func startController(w *world) *controller {
	c := &controller{line: newLine(w.outage, w.frozen), stop: func() {}}
	mgr, err := w.newProcess("controller", c.line, nil)
	if err != nil {
		w.check(err)
		return c
	}
	clock := &worldClock{now: time.Now()}
	w.check(network.Setup(mgr, network.Options{CounterInterval: counterInterval, Registerer: prometheus.NewRegistry()}))
	w.check(ipblock.Setup(mgr, ipblock.Options{Grace: nodeGoneGrace, Clock: clock}))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := mgr.Start(ctx); err != nil && ctx.Err() == nil {
			w.violate("the controller ended: %v", err)
		}
	})
	running.Go(func() {
		clock.run(ctx, func() bool {
			return c.line.events.isShut() || w.outage.isShut() || w.frozen.isShut() || w.unsynced() > 0 || w.kernel.doomed(w.uidOf) > 0
		})
	})
	w.addLine(c.line)
	c.stop = func() {
		c.line.kill()
		cancel()
		running.Wait()
		w.dropLine(c.line)
	}
	return c
}

func (w *world) addLine(l *line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wires = append(w.wires, l)
}

func (w *world) dropLine(l *line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wires = slices.DeleteFunc(w.wires, func(other *line) bool { return other == l })
}

// history is what happened, in a file for whoever looks into a failure.
type history struct {
	mu   sync.Mutex
	file *os.File
}

func newHistory(name string) (*history, error) {
	file, err := os.CreateTemp("", "netplane-addresses-"+name+"-*.log")
	return &history{file: file}, err
}

// Write takes a line of a logger.
func (h *history) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.file.Write(p)
}

func (h *history) printf(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, _ = fmt.Fprintf(h.file, "%s      %s\n", time.Now().Format("M0102 15:04:05.000000"), fmt.Sprintf(format, args...))
}

func (h *history) logger(name string) logr.Logger {
	return textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(h), textlogger.Verbosity(2))).WithName(name)
}

// drop removes the history of a run that went well.
func (h *history) drop() error { return errors.Join(h.file.Close(), os.Remove(h.file.Name())) }

func prefixOf(block *v1alpha1.IPBlock) netip.Prefix {
	prefix, err := netip.ParsePrefix(string(block.Spec.CIDR))
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package addresses

import (
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// lateReturn spreads the moments at which agents reach a restored API server.
	lateReturn = time.Second
	// startTime is what it takes most agents to be started again, and to list.
	startTime = time.Second
	// backupAge is in revisions.
	backupAge = 5000
	// leastAge is what agents live before they crash: long enough to note down
	// which version they saw, which takes them a second.
	leastAge = 1500 * time.Millisecond
	// rollbackPause is the agents' after a rollback: long enough for what takes
	// its own time in it and is not shrunk: that agents begin anew and fill their
	// caches, fifty of them on a machine that is busy.
	rollbackPause = 20 * time.Second
	// falseAlarm is the pause where there is no rollback to be noticed.
	falseAlarm = time.Second
)

func (w *world) rollbackPause() time.Duration {
	if w.plan.rollback {
		return rollbackPause
	}
	return falseAlarm
}

func (w *world) backupDir() string { return filepath.Join(w.dir, "backup") }

// backup copies etcd's state. Whoever calls in this moment waits.
func (w *world) backup() {
	w.frozen.set(true)
	defer w.frozen.set(false)
	w.check(apiServer.Backup(w.backupDir()))
	// Backups are hours old. What is written in the rest of the run is less.
	w.check(apiServer.Age(backupAge))
}

// rollback restores etcd's state of the backup under a cluster that has gone on.
// From here on every machine runs pods that the API lacks, or lacks such as it
// has, until its kubelet has compared.
func (w *world) rollback() {
	release := w.startAmid()
	w.rewinds.Add(1)
	w.frozen.set(true)
	for _, l := range w.lines() {
		l.hangUp()
	}
	began := time.Now()
	w.check(apiServer.Rewind(w.backupDir()))
	w.rewinds.Add(1) // some may have compared in the last moment before
	w.log.printf("the API server is back after %s", time.Since(began))
	// The controller has lost its lease meanwhile, which ends the process.
	w.controller.stop()
	w.controller = startController(w)
	late := w.lines()
	for i, l := range late {
		if (w.plan.seed>>(i%16))%4 == 0 {
			l.parted.set(true)
			time.AfterFunc(lateReturn*time.Duration(i)/time.Duration(len(late)), func() { l.parted.set(false) })
		}
	}
	w.frozen.set(false)
	release()
}

// startAmid has some agents begin anew while the API server is set back: they
// list IPBlocks only when release was called, and the other kinds before.
func (w *world) startAmid() (release func()) {
	for i, n := range w.nodes {
		n.blocks.set((w.plan.seed>>(i%13))%5 == 0)
	}
	for _, l := range w.lines() {
		if l.blocks.isShut() {
			l.die()
		}
	}
	time.Sleep(startTime)
	return func() {
		for _, n := range w.nodes {
			n.blocks.set(false)
		}
	}
}

// mature waits, where there is a rollback, until the agent may crash.
func (n *node) mature(s *step) {
	crashes := s.crash != nowhere || s.kind == crashAgent || s.kind == agentDown
	if crashes && n.world.plan.rollback {
		time.Sleep(leastAge - time.Since(n.agent.born))
	}
}

// unsynced counts the machines that have not compared yet.
func (w *world) unsynced() int {
	count := 0
	for _, n := range w.nodes {
		if n.synced.Load() < w.rewinds.Load() {
			count++
		}
	}
	return count
}

// resync is what a kubelet does on a restored API server: it registers again if
// its Node is missing, and goes by the pods that it finds there.
func (n *node) resync() {
	w := n.world
	rewinds := w.rewinds.Load()
	if n.synced.Load() == rewinds {
		return
	}
	var obj corev1.Node
	var pods corev1.PodList
	w.admin("comparing with a restored API server", func() error {
		err := w.api.Get(w.ctx, client.ObjectKey{Name: n.name}, &obj)
		if apierrors.IsNotFound(err) {
			obj, err = corev1.Node{}, nil
		}
		if err != nil {
			return err
		}
		return w.api.List(w.ctx, &pods, client.MatchingFields{"spec.nodeName": n.name})
	})
	switch {
	case n.off && obj.UID != "":
		n.unregister()
	case !n.off && obj.UID == "":
		n.register()
	default:
		n.setUID(obj.UID)
	}
	known := map[types.UID]bool{}
	for i := range pods.Items {
		known[pods.Items[i].UID] = true
	}
	var lost []string
	for i, sb := range n.slots {
		if sb == nil {
			continue
		}
		if known[sb.pod.uid] {
			delete(known, sb.pod.uid)
			continue
		}
		sb.pod.gone.Store(true)
		if sb.container != "" {
			lost = append(lost, sb.container)
		}
		n.slots[i] = nil
	}
	n.synced.Store(rewinds)
	for _, id := range lost {
		n.teardown(id, nowhere)
	}
	for i := range pods.Items {
		if known[pods.Items[i].UID] {
			n.takeBack(&pods.Items[i], i)
		}
	}
}

// takeBack starts a pod that had ended before the rollback, or deletes it again.
func (n *node) takeBack(obj *corev1.Pod, index int) {
	p := &pod{name: obj.Name, uid: obj.UID}
	if requests, err := podnetworks.Parse(obj.Annotations[v1alpha1.AnnotationNetworks]); err == nil {
		for i := range requests {
			p.nets = append(p.nets, requests[i].Name)
		}
	}
	for i, sb := range n.slots {
		if sb == nil && !n.off && index%2 == 0 {
			n.slots[i] = &sandboxed{pod: p}
			n.startPod(n.slots[i], &step{})
			return
		}
	}
	n.world.deletePod(p)
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchendpoints

import (
	"context"
	"testing"
	"time"

	"github.com/netplane/netplane/test/figures"
)

// The two Services over the same pods, and who publishes them.
const (
	ours   = "ours"
	theirs = "theirs"
	app    = "web"
)

// calm is how long nothing happens before a measurement.
const calm = 5 * time.Second

// measured is what one round found out about one controller.
type measured struct {
	p99            time.Duration // of each slice's own latency
	ready          time.Duration // from the last pod ready to all slices right
	writesPerGroup float64       // for a pod that became not ready
}

// BenchmarkSync has both controllers publish the same pods at the same time,
// after theirs did so alone.
func BenchmarkSync(b *testing.B) {
	pods, flaps := figures.Setting(b, "PODS", 5000), figures.Setting(b, "FLAPS", 60)
	w := start(b, (pods+podsPerNode-1)/podsPerNode)
	parallel(b, pods, func(ctx context.Context, i int) error { return w.makePod(ctx, app, i, true, false) })
	must(b, w.makeService(b.Context(), theirs, app, false))
	must(b, w.makeService(b.Context(), ours, app, true))
	o := w.observe(b)
	w.runTheirs(b)
	alone := w.round(b, o, []string{theirs}, pods, flaps)[theirs]
	w.runOurs(b)
	both := w.round(b, o, []string{theirs, ours}, pods, flaps)
	report(b, both[ours], both[theirs], alone)
}

// round has all pods become ready, as fast as the API server takes it, and then
// some of them not ready, one each second.
func (w *world) round(b *testing.B, o *observer, of []string, pods, flaps int) map[string]measured {
	b.Helper()
	parallel(b, pods, func(ctx context.Context, i int) error { return w.setReady(ctx, app, i, false, time.Now()) })
	await(b, "all pods in all slices", func() error { return o.complete(of, pods, endpointsOf) })
	await(b, "no pod ready in any slice", func() error { return o.complete(of, 0, readyOf) })
	time.Sleep(calm)
	o.reset(pods)
	parallel(b, pods, func(ctx context.Context, i int) error { return w.setReady(ctx, app, i, true, time.Now()) })
	last := time.Now()
	await(b, "all pods ready in all slices", func() error { return o.complete(of, pods, readyOf) })
	time.Sleep(calm)
	out := map[string]measured{}
	for _, by := range of {
		out[by] = measured{ready: max(o.rightSince(b, by).Sub(last), time.Millisecond)}
	}
	o.reset(pods - flaps)
	for i := range flaps {
		at := nextSecond()
		must(b, w.setReady(b.Context(), app, i, false, at))
	}
	await(b, "the last change to be published", func() error { return o.complete(of, pods-flaps, readyOf) })
	time.Sleep(calm)
	for _, by := range of {
		m := out[by]
		m.p99, m.writesPerGroup = o.p99(b, by, flaps)
		out[by] = m
		figures.Say(b, "sync: of %v, %s with %d groups: the last of %d pods became ready, and all was published %s later; 99 %% of the slices of %d changes of one pod within %s",
			of, by, groupCount(by), pods, m.ready.Round(time.Millisecond), flaps, m.p99.Round(time.Millisecond))
	}
	return out
}

// report prints the figures; README.md tells what each is.
func report(b *testing.B, our, their, alone measured) {
	b.Helper()
	names, all := []string{ours, theirs, theirs + "-alone"}, []measured{our, their, alone}
	for i, m := range all {
		figure(b, "sync-p99-ms/"+names[i], float64(m.p99.Milliseconds()))
		figure(b, "all-ready-ms/"+names[i], float64(m.ready.Milliseconds()))
	}
	groups := float64(groupCount(ours)) / float64(groupCount(theirs))
	p99, ready := our.p99.Seconds()/their.p99.Seconds(), our.ready.Seconds()/their.ready.Seconds()
	figure(b, "ratio/sync-p99", p99)
	figure(b, "ratio/sync-p99-divided", p99/groups)
	figure(b, "ratio/sync-p99-to-alone", our.p99.Seconds()/alone.p99.Seconds())
	figure(b, "ratio/all-ready", ready/groups)
	figure(b, "ratio/all-ready-undivided", ready)
	figure(b, "ratio/all-ready-to-alone", our.ready.Seconds()/groups/alone.ready.Seconds())
	figure(b, "writes-per-flap", our.writesPerGroup)
	figure(b, "writes-per-flap/theirs", their.writesPerGroup)
}

// nextSecond waits for the clock's next second: readiness is dated to the
// second, and so would be up to one late.
func nextSecond() time.Time {
	now := time.Now()
	next := now.Truncate(time.Second).Add(time.Second)
	time.Sleep(next.Sub(now))
	return next
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// consistent fails the test if a journal gives an address, or an interface, twice.
func consistent(t *testing.T, state *replayed) {
	t.Helper()
	if len(state.byOwner) != len(state.byAddr) {
		t.Fatalf("%d interfaces have %d addresses", len(state.byOwner), len(state.byAddr))
	}
	for key, lease := range state.byOwner {
		if lease.key() != key || state.byAddr[lease.addr()] != key {
			t.Fatalf("lease %+v is not where its keys say", lease)
		}
		if err := lease.valid(); err != nil {
			t.Fatalf("lease %+v: %v", lease, err)
		}
	}
}

// randomJournal returns the lines of a journal and the leases after each.
func randomJournal(t *testing.T, random *rand.Rand) (lines [][]byte, states [][]Lease) {
	t.Helper()
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29", "10.20.0.16/29")
	f.hold("management", managementUID, "10.10.0.8/29")
	size := 0
	for range 40 {
		pod := fmt.Sprint("p", random.IntN(8))
		if random.IntN(3) == 0 {
			f.mustRelease("sandbox-" + pod)
		} else {
			asks := []Ask{ask(pod, "data", "net1"), ask(pod, "management", "net2")}
			_, _ = f.reserve(asks[:1+random.IntN(2)]...)
		}
		data, err := os.ReadFile(f.path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) <= size { // nothing to do, or compacted because it was empty
			if len(data) < size {
				lines, states, size = nil, nil, 0
			}
			continue
		}
		lines = append(lines, data[size:])
		states = append(states, f.Leases())
		size = len(data)
	}
	return lines, states
}

func TestAnyPrefixOfAJournalReplaysToWhatItsWholeLinesSay(t *testing.T) {
	for seed := range uint64(3) {
		lines, states := randomJournal(t, rand.New(rand.NewPCG(seed, 1)))
		var whole []byte
		var want []Lease
		for i, line := range lines {
			for cut := 0; cut < len(line); cut += max(1, min(cut, len(line)-cut-1, 60)) {
				state := readRecords(append(bytes.Clone(whole), line[:cut]...))
				consistent(t, state)
				expectEqual(t, fmt.Sprintf("seed %d, line %d cut at %d", seed, i, cut), want, state.leases())
				expectEqual(t, "damaged lines", 0, state.damaged)
				if t.Failed() {
					t.FailNow()
				}
			}
			whole, want = append(whole, line...), states[i]
		}
	}
}

func TestADamagedLineCostsOnlyItself(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	for _, pod := range []string{"a", "b", "c"} {
		f.mustReserve(ask(pod, "data"))
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	spoilt := bytes.Replace(data, []byte(`"b"`), []byte(`"x"`), 1)
	state := readRecords(spoilt)
	expectEqual(t, "addresses", []string{"10.20.0.9", "10.20.0.11"}, addresses(state.leases()))
	expectEqual(t, "damaged lines", 1, state.damaged)
	if err := os.WriteFile(f.path, spoilt, 0o600); err != nil {
		t.Fatal(err)
	}
	f.crash(func(Lease) bool { return true })
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "addresses after two starts", []string{"10.20.0.9", "10.20.0.11"}, addresses(f.Leases()))
}

func FuzzReadRecords(f *testing.F) {
	lease := Lease{Owner: ask("a", "data").Owner, Network: "data"}
	line, err := encode(record{Op: opLease, Leases: []Lease{lease}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add([]byte("00000000 {}\n"))
	f.Add([]byte("\n\nxyz\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		state := readRecords(data)
		consistent(t, state)
		var again []byte
		for _, lease := range state.leases() {
			line, err := encode(record{Op: opLease, Leases: []Lease{lease}})
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, line...)
		}
		expectEqual(t, "after rewriting", state.leases(), readRecords(again).leases())
	})
}

// FuzzApply lets the fuzzer choose the operations: the checksums keep
// FuzzReadRecords from getting far.
func FuzzApply(f *testing.F) {
	f.Add([]byte{0, 1, 2, 128, 1, 2, 0, 3, 2})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var data []byte
		for ; len(ops) >= 3; ops = ops[3:] {
			lease := Lease{Owner: ask(fmt.Sprint("p", ops[1]%4), "data").Owner, Network: "data"}
			if err := lease.Address.UnmarshalText(fmt.Appendf(nil, "10.20.0.%d", 8+ops[2]%8)); err != nil {
				t.Fatal(err)
			}
			lease.Block, _ = lease.Address.Prefix(29)
			op := opLease
			if ops[0] >= 128 {
				op = opFree
			}
			line, err := encode(record{Op: op, Leases: []Lease{lease}})
			if err != nil {
				t.Fatal(err)
			}
			data = append(data, line...)
		}
		state := readRecords(data)
		consistent(t, state)
		if state.damaged != 0 {
			t.Fatalf("%d lines were unreadable", state.damaged)
		}
	})
}

func TestAFailedWriteChangesNothing(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	good := f.journal.file
	readOnly, err := os.Open(f.path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = readOnly.Close() }()
	f.journal.file = readOnly
	_, err = f.reserve(ask("b", "data"))
	if err == nil || !strings.HasPrefix(err.Error(), `reserving an address of network "data": writing the journal: `) {
		t.Errorf("Reserve: %v", err)
	}
	err = f.Release(t.Context(), "sandbox-a")
	if err == nil || !strings.HasPrefix(err.Error(), "releasing the addresses of container sandbox-a: writing the journal: ") {
		t.Errorf("Release: %v", err)
	}
	f.journal.file = good
	expectEqual(t, "leases", []string{"10.20.0.9"}, addresses(f.Leases()))
	expectEqual(t, "next address", []string{"10.20.0.10"}, f.mustReserve(ask("b", "data")))
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "leases after a start", []string{"10.20.0.9", "10.20.0.10"}, addresses(f.Leases()))
}

func TestATornLineDoesNotSpoilTheNext(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	failsHalfWay := func() {
		n, err := f.journal.file.WriteString("0badc0de {\"op\":")
		if err != nil {
			t.Fatal(err)
		}
		f.journal.piece += int64(n)
	}
	failsHalfWay() // and cannot be cut off
	failsHalfWay()
	f.mustReserve(ask("b", "data"))
	failsHalfWay()
	if err := f.journal.file.Truncate(f.journal.size); err != nil { // as append does
		t.Fatal(err)
	}
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "leases", []string{"10.20.0.9", "10.20.0.10"}, addresses(f.Leases()))
}

func TestTheJournalStaysShort(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("stays", "data"))
	longest := 0
	for i := range 500 {
		pod := fmt.Sprint("p", i)
		f.mustReserve(ask(pod, "data"))
		f.mustRelease("sandbox-" + pod)
		longest = max(longest, lineCount(t, f.path))
	}
	if longest > 2*compactAfter+4 {
		t.Errorf("the journal had %d lines for 1 lease", longest)
	}
	f.tidy()
	expectEqual(t, "lines after tidying: the lease and what cools down", 2, lineCount(t, f.path))
	f.mustRelease("sandbox-stays")
	f.clock.Step(coolDown)
	f.tidy()
	expectEqual(t, "lines after the last release", 0, lineCount(t, f.path))
	files, err := filepath.Glob(filepath.Join(filepath.Dir(f.path), "*"))
	if err != nil {
		t.Fatal(err)
	}
	expectEqual(t, "files", []string{f.path, f.path + ".lock"}, files)
}

func TestAddressesCoolDownOverARestart(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"), ask("a", "data", "net2"), ask("a", "data", "net3"))
	f.mustRelease("sandbox-a", "net2")
	f.clock.Step(time.Second)
	f.mustRelease("sandbox-a", "net1")
	for _, compact := range []bool{false, true} {
		if compact {
			f.tidy()
		}
		f.clock.Step(time.Second)
		f.crash(func(l Lease) bool { return l.IfName != "net3" })
		f.hold("data", dataUID, "10.20.0.8/29")
		asks := []Ask{}
		for i := range 7 {
			asks = append(asks, ask("b", "data", fmt.Sprint("net", i)))
		}
		// What was never used first, then what was freed first; that of the dead pod last.
		want := []string{"10.20.0.12", "10.20.0.13", "10.20.0.14", "10.20.0.15", "10.20.0.10", "10.20.0.9", "10.20.0.11"}
		_, fresh, _, err := f.pickAll(asks)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range fresh {
			got = append(got, p.lease.Address.String())
		}
		expectEqual(t, fmt.Sprint("order after compaction ", compact), want, got)
	}
	f.clock.Step(coolDown)
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "addresses that cool down", 0, len(f.cooling))
}

func TestAddressesCoolDownWhileTheirBlockIsAway(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.16/29")
	f.mustReserve(ask("a", "data"))
	f.mustRelease("sandbox-a")
	f.hold("data", dataUID)
	f.hold("data", dataUID, "10.20.0.16/29")
	expectEqual(t, "address", []string{"10.20.0.18"}, f.mustReserve(ask("b", "data")))
}

func TestAReleaseInTheJournalMatchesAllOfItsLease(t *testing.T) {
	lease := Lease{
		Owner: Owner{PodUID: "uid", ContainerID: "c1", IfName: "net1"}, Network: "data",
		Address: netip.MustParseAddr("10.20.0.17"), Block: netip.MustParsePrefix("10.20.0.16/29"), Since: time.Date(2026, 9, 1, 12, 0, 0, 5, time.UTC),
	}
	tests := map[string]func(l *Lease){
		"network":   func(l *Lease) { l.Network = "management" },
		"address":   func(l *Lease) { l.Address = l.Address.Next() },
		"container": func(l *Lease) { l.ContainerID = "c2" },
		"interface": func(l *Lease) { l.IfName = "net2" },
		"pod":       func(l *Lease) { l.PodUID = "other" },
		"time":      func(l *Lease) { l.Since = l.Since.Add(time.Second) },
	}
	replay := func(free Lease) []Lease {
		t.Helper()
		var text []byte
		for _, r := range []record{{Op: opLease, Leases: []Lease{lease}}, {Op: opFree, Leases: []Lease{free}}} {
			line, err := encode(r)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, line...)
		}
		return readRecords(text).leases()
	}
	expectEqual(t, "leases after the release", 0, len(replay(lease)))
	for what, change := range tests {
		free := lease
		change(&free)
		expectEqual(t, "leases after the release of another "+what, []Lease{lease}, replay(free))
	}
}

func TestACompactionThatFailsLosesNothing(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	f.mustReserve(ask("a", "data"))
	f.mustReserve(ask("b", "data"))
	if err := os.Mkdir(f.path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	f.mustRelease("sandbox-a")
	f.tidy()
	f.mustReserve(ask("c", "data"))
	if err := os.Remove(f.path + ".new"); err != nil {
		t.Fatal(err)
	}
	want := f.Leases()
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "leases", want, f.Leases())
}

func TestAStartWithoutRoomGoesOnWithTheJournalOfBefore(t *testing.T) {
	f := newFixture(t)
	f.hold("data", dataUID, "10.20.0.8/29")
	for _, pod := range []string{"a", "b", "c"} {
		f.mustReserve(ask(pod, "data"))
	}
	f.mustRelease("sandbox-c")
	if _, err := f.journal.file.WriteString("0badc0de {\"op\":"); err != nil { // killed in the middle of a write
		t.Fatal(err)
	}
	if err := os.Mkdir(f.path+".new", 0o700); err != nil { // as good as a full file system
		t.Fatal(err)
	}
	f.crash(func(l Lease) bool { return l.PodName == "a" })
	f.hold("data", dataUID, "10.20.0.8/29")
	expectEqual(t, "leases", []string{"10.20.0.9"}, addresses(f.Leases()))
	expectEqual(t, "next address: b's and c's cool down", []string{"10.20.0.12"}, f.mustReserve(ask("d", "data")))
	f.mustRelease("sandbox-a")

	f.crash(func(l Lease) bool { return l.PodName != "b" })
	expectEqual(t, "leases after another such start", []string{"10.20.0.12"}, addresses(f.Leases()))
	if err := os.Remove(f.path + ".new"); err != nil {
		t.Fatal(err)
	}
	f.mustRelease("sandbox-d")
	if lines := lineCount(t, f.path); lines != 1 {
		t.Errorf("%d lines in the journal once there is room again, want only what cools down", lines)
	}
	f.crash(func(Lease) bool { return true })
	expectEqual(t, "leases with room", []Lease{}, f.Leases())
}

func lineCount(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(data, []byte{'\n'})
}

func encode(r record) ([]byte, error) { return appendLine(nil, &r) }

// A field that the record lacks would be lost with the agent.
func TestARecordKeepsEveryFieldOfALease(t *testing.T) {
	lease := Lease{
		Owner:   Owner{PodUID: "uid", PodNamespace: "default", PodName: "a \"quoted\" \\ name\n\u00e9", ContainerID: "c1", IfName: "net1", NetNS: "/run/netns/x"},
		Network: "management", NetworkUID: "network-uid", Address: netip.MustParseAddr("fd00::5"), Block: netip.MustParsePrefix("fd00::/122"), Node: netip.MustParseAddr("fd00::1"), Fixed: true,
		Since: time.Date(2026, 9, 1, 12, 0, 0, 123456789, time.UTC),
	}
	expectNoZero(t, reflect.ValueOf(lease))
	for _, leases := range [][]Lease{{lease}, {lease, {Owner: Owner{ContainerID: "c2", IfName: "eth0"}, Network: "data", Address: netip.MustParseAddr("10.0.0.5"), Block: netip.MustParsePrefix("10.0.0.0/26")}},
		{{Owner: Owner{ContainerID: "c3", IfName: "eth0"}, Network: "data", Address: netip.MustParseAddr("10.0.0.6"), Fixed: true}}} {
		written := record{Op: opFree, Leases: leases, At: lease.Since, Freed: []freed{{Network: "data", Address: lease.Address, At: lease.Since}}}
		line, err := appendLine([]byte("before"), &written)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(bytes.TrimSuffix(bytes.TrimPrefix(line, []byte("before")), []byte("\n")))
		if err != nil {
			t.Fatalf("%v of %s", err, line)
		}
		expectEqual(t, "record", written, got)
	}
}

// expectNoZero has the test above fail for a field that was added to Lease.
func expectNoZero(t *testing.T, v reflect.Value) {
	t.Helper()
	for i := range v.NumField() {
		if field := v.Type().Field(i); field.Anonymous {
			expectNoZero(t, v.Field(i))
		} else if v.Field(i).IsZero() {
			t.Errorf("the test gives field %s no value", field.Name)
		}
	}
}

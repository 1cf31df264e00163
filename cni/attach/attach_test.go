// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
	"github.com/netplane/netplane/cni/wire"
)

func TestAddMakesWhatTheDesignSays(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", both); err != nil {
		t.Fatal(err)
	}
	shim, end := link.ShimName("management", "np-eth1"), link.HostEndName("c1", "net1")
	want := strings.Join([]string{
		"/ns/c1: eth0 macvlan on np-eth1 mac 0a:" + mac(t, w, "management") + " mtu 1500 10.10.0.2/16 fd00:10:10::a0a:2/64 route 0.0.0.0/0 via 10.10.0.1 route ::/0 via fd00:10:10::a0a:1",
		"/ns/c1: net1 veth on np-eth1 mac 0a:" + mac(t, w, "data") + " mtu 1500 10.20.0.2/16",
		"host: np-eth1 bridge port eth1",
		"host: " + shim + " macvlan on np-eth1 mtu 1500",
		"host: " + shim + " address 10.10.0.1/32",
		"host: " + shim + " address fd00:10:10::a0a:1/128",
		"host: " + shim + " route 10.10.0.0/16 src 10.10.0.1",
		"host: " + shim + " route 10.10.0.2 src 10.10.0.1",
		"host: " + shim + " route fd00:10:10::/64 src fd00:10:10::a0a:1",
		"host: " + shim + " route fd00:10:10::a0a:2 src fd00:10:10::a0a:1",
		"host: " + end + " veth master np-eth1",
		"nft: oifname != " + shim + " saddr [10.10.0.0/16 fd00:10:10::/64] masquerade, else dnat from [10.10.0.1 fd00:10:10::a0a:1] but to [10.10.0.0/26 fd00:10:10::a0a:0/122]",
	}, "\n")
	if diff := cmp.Diff(sorted(want), sorted(w.links.String())); diff != "" {
		t.Error(diff)
	}
}

func mac(t *testing.T, w *world, network string) string {
	t.Helper()
	for _, s := range w.snapshot() {
		for i := range s.Interfaces {
			if s.Attachments[i].Name == network {
				return strings.TrimPrefix(s.Interfaces[i].MAC, "0a:")
			}
		}
	}
	t.Fatalf("no interface on %s", network)
	return ""
}

func sorted(text string) []string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return lines
}

// Every operation of an ADD fails once; the node must look as before.
func TestAddThatFailsAnywhereLeavesNothing(t *testing.T) {
	var operations []string
	w := newWorld(t)
	w.links.FailOn = func(operation string) error { operations = append(operations, operation); return nil }
	if err := w.add(t.Context(), "c1", both); err != nil {
		t.Fatal(err)
	}
	if len(operations) < 5 {
		t.Fatalf("only %v: the test does not see the ADD", operations)
	}
	slices.Sort(operations)
	for _, operation := range slices.Compact(operations) {
		t.Run(operation, func(t *testing.T) {
			w := newWorld(t)
			other := both
			if operation == "masquerade" {
				other = "data" // rules that stand already are not written again
			}
			if err := w.add(t.Context(), "other", other); err != nil {
				t.Fatal(err)
			}
			before, leases, failed := w.links.String(), len(w.leases), false
			w.links.FailOn = func(now string) error {
				if now == operation && !failed {
					failed = true
					return errors.New("injected")
				}
				return nil
			}
			err := w.add(t.Context(), "c1", both)
			if err == nil || !strings.Contains(err.Error(), "injected") {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff(before, w.links.String()); diff != "" {
				t.Error(diff)
			}
			if len(w.leases) != leases {
				t.Errorf("addresses left: %v", w.leases)
			}
			if diff := cmp.Diff([]string{"other.json"}, w.files(t)); diff != "" {
				t.Error(diff)
			}
			w.links.FailOn = nil
			if err := w.add(t.Context(), "c1", both); err != nil {
				t.Errorf("the next try: %v", err)
			}
		})
	}
}

func TestAddWhoseRecordCannotBeWrittenLeavesNothing(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(string(w.records), nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	err := w.add(t.Context(), "c1", "data")
	if err == nil || !strings.Contains(err.Error(), "making the folder of sandboxes") {
		t.Errorf("got %v", err)
	}
	if text := w.links.String(); text != "host: np-eth1 bridge port eth1\n" || len(w.leases) > 0 {
		t.Errorf("left: %s%v", text, w.leases)
	}
}

func TestDelFreesAddressesAfterTheLinksAreGone(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"c1", "c2"} {
		if err := w.add(t.Context(), id, both); err != nil {
			t.Fatal(err)
		}
	}
	sandbox := sandboxOf("c1")
	w.links.FailOn = func(operation string) error {
		if operation == "delete eth0" {
			return errors.New("injected")
		}
		return nil
	}
	if err := w.del(t.Context(), &sandbox); err == nil || err.Error() != "injected" {
		t.Errorf("got %v", err)
	}
	if len(w.order) > 0 || len(w.leases) != 4 {
		t.Errorf("addresses were freed although a link stands: %v", w.order)
	}
	w.links.FailOn = nil
	for range 2 {
		if err := w.del(t.Context(), &sandbox); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(w.order[0], "/ns/c1") || !strings.Contains(w.order[0], "/ns/c2") {
		t.Errorf("got %s", w.order[0])
	}
	for _, line := range sorted(w.links.String()) {
		if strings.Contains(line, "c1") || strings.Contains(line, "route 10.10.0.2 ") {
			t.Errorf("left: %s", line)
		}
	}
	sandbox = sandboxOf("c2")
	if err := w.del(t.Context(), &sandbox); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"host: np-eth1 bridge port eth1"}, sorted(w.links.String())); diff != "" {
		t.Errorf("with the last pod: %s", diff)
	}
}

func TestSecondAddOfASandboxIsRefused(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data"); err != nil {
		t.Fatal(err)
	}
	err := w.add(t.Context(), "c1", "data")
	if err == nil || !strings.Contains(err.Error(), "has its networks already") {
		t.Errorf("got %v", err)
	}
	if len(w.leases) != 1 {
		t.Errorf("got %v", w.leases)
	}
}

func TestDefaultRouteIsWhereThePodAskedForIt(t *testing.T) {
	w := newWorld(t)
	w.networks["data"].Spec.Gateway = "10.20.0.254"
	w.networks["data"].Spec.Routes = []v1alpha1.Route{{To: "10.0.0.0/8", Via: "10.20.0.253"}, {To: "fd00::/8", Via: "fd00::1"}}
	w.networks["data"].Spec.AdditionalSubnets = []v1alpha1.CIDR{"10.21.0.0/16"}
	if err := w.add(t.Context(), "c1", "- {name: management, ifname: eth0}\n- {name: data, defaultRoute: true}"); err != nil {
		t.Fatal(err)
	}
	text := w.links.String()
	for _, want := range []string{
		// eth0: Services over the node, and no default route but in the family that data lacks.
		"fd00:10:10::a0a:2/64 route 10.96.0.0/16 via 10.10.0.1 route ::/0 via fd00:10:10::a0a:1 source 10.10.0.0/16 10.96.0.0/16 via 10.10.0.1 0.0.0.0/0 via 10.10.0.1\n",
		"10.20.0.2/16 route 10.21.0.0/16 route 10.0.0.0/8 via 10.20.0.253 route 0.0.0.0/0 via 10.20.0.254" +
			" source 10.20.0.0/16 10.21.0.0/16 10.0.0.0/8 via 10.20.0.253 0.0.0.0/0 via 10.20.0.254 take-default keep 10.96.0.0/16\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestIPv6OnlyNetworkOnEth0(t *testing.T) {
	w := newWorld(t)
	w.networks["six"] = ready("six", v1alpha1.PluginMacvlan, "fd00:66::/112", "")
	if err := w.add(t.Context(), "c1", "six@eth0"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		" mtu 1500 fd00:66::2/112 route ::/0 via fd00:66::1\n", " address fd00:66::1/128\n", " route fd00:66::2 src fd00:66::1\n", " saddr [fd00:66::/112] masquerade, else dnat from [fd00:66::1] but to ",
	} {
		if text := w.links.String(); !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}

func TestRestartKeepsWhatStandsAndUndoesTheRest(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"kept", "half", "deleted"} {
		if err := w.add(t.Context(), id, both); err != nil {
			t.Fatal(err)
		}
	}
	half, _ := w.sandbox("half")
	changed := *half
	changed.State = StateAttaching
	if err := w.records.Save(&changed); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(string(w.records), "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	spool := w.config.Spool()
	for _, id := range []string{"deleted", "unknown"} {
		if err := spool.Put(sandboxOf(id)); err != nil {
			t.Fatal(err)
		}
	}
	clear(w.reported)
	w.open(t, w.config.StateDir)
	if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "before ReplaySpool") {
		t.Errorf("got %v", err)
	}
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.restore(t.Context())
	if diff := cmp.Diff(map[string]int{"kept": 2}, w.reported); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"broken.json", "kept.json"}, w.files(t)); diff != "" {
		t.Error(diff)
	}
	if text := w.links.String(); strings.Contains(text, "/ns/half") || strings.Contains(text, "/ns/deleted") || !strings.Contains(text, "/ns/kept") {
		t.Errorf("got %s", text)
	}
	if dels, _, err := spool.List(); err != nil || len(dels) > 0 {
		t.Errorf("left in the spool: %v %v", dels, err)
	}
}

func TestSpooledDelThatFailsIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data"); err != nil {
		t.Fatal(err)
	}
	if err := w.config.Spool().Put(sandboxOf("c1")); err != nil {
		t.Fatal(err)
	}
	w.open(t, w.config.StateDir)
	w.links.FailOn = func(string) error { return errors.New("injected") }
	if err := w.ReplaySpool(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.leases) != 1 {
		t.Error("the address is free although the link stands")
	}
	w.links.FailOn = nil
	w.collectOnce(t.Context(), nil)
	if dels, _, _ := w.config.Spool().List(); len(dels) > 0 || len(w.leases) > 0 || len(w.files(t)) > 0 {
		t.Errorf("left: %v %v %v", dels, w.leases, w.files(t))
	}
}

// The binary gave up waiting: its DEL lies in the spool of a server that runs.
func TestDelThatIsSpooledWhileServingIsCarriedOut(t *testing.T) {
	w := newWorld(t)
	if err := w.add(t.Context(), "c1", "data"); err != nil {
		t.Fatal(err)
	}
	if err := w.config.Spool().Put(sandboxOf("c1")); err != nil {
		t.Fatal(err)
	}
	w.collectOnce(t.Context(), nil)
	if dels, _, _ := w.config.Spool().List(); len(dels) > 0 || len(w.leases) > 0 || len(w.files(t)) > 0 {
		t.Errorf("left: %v %v %v", dels, w.leases, w.files(t))
	}
}

func TestVanishedSandboxIsFreedWhenSeenTwice(t *testing.T) {
	w := newWorld(t)
	for _, id := range []string{"c1", "c2"} {
		if err := w.add(t.Context(), id, "data"); err != nil {
			t.Fatal(err)
		}
	}
	w.gone["/ns/c1"] = true
	missing := w.collectOnce(t.Context(), nil)
	if len(w.leases) != 2 {
		t.Fatal("freed at first sight")
	}
	w.gone["/ns/c1"] = false // it was only being made
	missing = w.collectOnce(t.Context(), missing)
	w.gone["/ns/c1"] = true
	missing = w.collectOnce(t.Context(), missing)
	if len(w.leases) != 2 {
		t.Fatal("freed although it was there in between")
	}
	w.collectOnce(t.Context(), missing)
	if diff := cmp.Diff([]string{"c2.json"}, w.files(t)); diff != "" || len(w.leases) != 1 {
		t.Error(diff, w.leases)
	}
}

func TestTheBinarysCopyOfTheAnnotationKey(t *testing.T) {
	for own, theirs := range map[string]string{
		wire.AnnotationNetworks:             v1alpha1.AnnotationNetworks,
		wire.AnnotationNPWGNetworks:         v1alpha1.AnnotationNPWGNetworks,
		wire.AnnotationMultusDefaultNetwork: v1alpha1.AnnotationMultusDefaultNetwork,
	} {
		if own != theirs {
			t.Errorf("%s is not %s", own, theirs)
		}
	}
}

func TestNewServerNamesWhatIsMissing(t *testing.T) {
	_, err := NewServer(Config{StateDir: "x"}, Deps{})
	if err == nil || err.Error() != "attach.Deps.Networks is missing" {
		t.Errorf("got %v", err)
	}
}

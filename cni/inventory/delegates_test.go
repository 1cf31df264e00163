// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package inventory

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/v1alpha1"
)

// lacking are the Networks whose plugin is not installed.
type lacking map[string]string

func (l lacking) Check(network *v1alpha1.Network) error {
	if text, ok := l[network.Name]; ok {
		return errors.New(text)
	}
	return nil
}

func TestNetworksWithoutTheirPluginAreRefused(t *testing.T) {
	in := Input{
		Map:          mustMap(t, "{alias: p, ref_nic: eth1}"),
		Networks:     networks(t, "overlay Flannel p", "routed ptp p", "elsewhere Flannel q", "data bridge p"),
		Devices:      devices(t, "eth1 device up"),
		NotInstalled: map[string]string{"overlay": "no Flannel", "elsewhere": "no Flannel"},
	}
	want := []v1alpha1.RefusedNetwork{{Network: "overlay", Reason: v1alpha1.ReasonPluginNotInstalled, Message: "no Flannel"}}
	if diff := cmp.Diff(want, Resolve(&in).Refused()); diff != "" {
		t.Error(diff)
	}
}

func TestOnlyPluginsThatAreNotBuiltInAreLookedFor(t *testing.T) {
	b := newBench(t)
	all := networks(t, "overlay Flannel p", "routed ptp p", "data bridge p")
	if got := b.notInstalled(all); got != nil {
		t.Errorf("without delegates: %v", got)
	}
	b.deps.Delegates = lacking{"overlay": "no Flannel", "data": "no bridge"}
	if diff := cmp.Diff(map[string]string{"overlay": "no Flannel"}, b.notInstalled(all)); diff != "" {
		t.Error(diff)
	}
}

func TestFoldersOfTheCNIAreWatched(t *testing.T) {
	dir := t.TempDir()
	watched := []mapWatch{{path: filepath.Join(dir, "map.yaml")}, {path: dir}}
	anyChanged(watched)
	if anyChanged(watched) {
		t.Error("a change was seen where there was none")
	}
	if err := os.WriteFile(filepath.Join(dir, "10-flannel.conflist"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The clock of files moves by ticks of some ms.
	if err := os.Chtimes(dir, time.Time{}, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if !anyChanged(watched) {
		t.Error("a new configuration was not seen")
	}
}

func TestANodeWhoseRuntimeDoesNotCallUsRefusesAllNetworks(t *testing.T) {
	for reason, change := range map[string]func(*Input){
		v1alpha1.ReasonUninstalled: func(in *Input) { in.Uninstalled, in.BypassedBy = true, "00-a.conf" },
		v1alpha1.ReasonBypassed:    func(in *Input) { in.BypassedBy = "00-multus.conf" },
	} {
		t.Run(reason, func(t *testing.T) {
			in := Input{
				Map:      mustMap(t, "{alias: p, ref_nic: eth1}"),
				Networks: networks(t, "data bridge p", "elsewhere macvlan q"),
				Devices:  devices(t, "eth1 device up"),
			}
			if got := Resolve(&in).Refused(); len(got) != 0 {
				t.Fatalf("refused before: %v", got)
			}
			change(&in)
			var got []string
			for _, r := range Resolve(&in).Refused() {
				got = append(got, r.Network+" "+r.Reason)
				if reason == v1alpha1.ReasonBypassed && !strings.Contains(r.Message, "takes the CNI configuration 00-multus.conf") {
					t.Errorf("got %q", r.Message)
				}
			}
			if diff := cmp.Diff([]string{"data " + reason, "elsewhere " + reason}, got); diff != "" {
				t.Error(diff)
			}
			if physical := Resolve(&in).PhysicalNetworks(); len(physical) != 1 || !physical[0].Ready {
				t.Errorf("physical networks %v: running pods' endpoints would go", physical)
			}
		})
	}
}

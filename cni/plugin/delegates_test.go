// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/cni/wire"
)

func TestRecordsOfDelegates(t *testing.T) {
	d := records(filepath.Join(t.TempDir(), "netplane"))
	if r, err := d.get("c1"); r != nil || err != nil {
		t.Fatalf("before the first: %v, %v", r, err)
	}
	if all, _, err := d.list(); len(all) > 0 || err != nil {
		t.Fatalf("before the first: %v, %v", all, err)
	}
	want := &record{ContainerID: "c1", Args: [][2]string{{"K8S_POD_NAME", "web"}}, Delegates: []wire.Delegate{
		{Network: "overlay", IfName: "net1", Config: json.RawMessage(`{"name":"n"}`), RuntimeConfig: map[string]json.RawMessage{"mac": json.RawMessage(`"0a:00:00:00:00:01"`)}},
		{Network: "overlay", IfName: "net2", Config: json.RawMessage(`{"name":"n"}`)},
	}}
	letGo, err := d.put(want)
	if err != nil {
		t.Fatal(err)
	}
	defer letGo()
	got, err := d.get("c1")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Fatalf("%v\n%s", err, diff)
	}
	if err := os.WriteFile(filepath.Join(string(d), "c2.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, unreadable, err := d.list()
	if len(all) != 1 || len(unreadable) != 1 || unreadable[0] != "c2" || err == nil {
		t.Errorf("beside a file that cannot be read: %v, %v, %v", all, unreadable, err)
	}
	for range 2 {
		if err := d.remove("c1"); err != nil {
			t.Error(err)
		}
	}
	if r, err := d.get("c1"); r != nil || err != nil {
		t.Errorf("after the last: %v, %v", r, err)
	}
	for _, id := range []string{"", "../c1"} {
		if _, err := d.put(&record{ContainerID: id}); err == nil {
			t.Errorf("container ID %q was taken", id)
		}
	}
}

func TestAddressesForADelegate(t *testing.T) {
	got, err := addresses(&wire.IPAM{Addresses: []wire.IPAMAddress{{Address: "10.0.0.2/24", Gateway: "10.0.0.1"}, {Address: "fd00::2/64"}}})
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, ip := range got.IPs {
		text = append(text, ip.Address.String()+" via "+ip.Gateway.String())
	}
	if diff := cmp.Diff([]string{"10.0.0.2/24 via 10.0.0.1", "fd00::2/64 via <nil>"}, text); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []wire.IPAM{{}, {Addresses: []wire.IPAMAddress{{Address: "10.0.0.2"}}}} {
		if _, err := addresses(&bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestDeviceInfoIsForThoseThatDeclareIt(t *testing.T) {
	all := []wire.Delegate{
		{IfName: "net1", Config: json.RawMessage(`{"plugins":[{"type":"bridge"}]}`)},
		{IfName: "net2", RuntimeConfig: map[string]json.RawMessage{"CNIDeviceInfoFile": json.RawMessage(`"/etc/passwd"`)}},
		{IfName: "net3"},
	}
	if err := offerDeviceInfo("c1", all); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if name, info := deviceFile(&all[i]), deviceInfo(&all[i]); name != "" || info != nil {
			t.Errorf("%s was given %q, with %s", all[i].IfName, name, info)
		}
		if err := forgetDeviceInfo(&all[i]); err != nil {
			t.Error(err)
		}
	}
}

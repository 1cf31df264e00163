// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/cni/link"
)

func TestWhatContradictsTheRuntimesResult(t *testing.T) {
	record := func(change func(*Sandbox)) *Sandbox {
		out := &Sandbox{
			Interfaces: []link.Interface{
				{Name: "net1", MAC: "0a:00:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.10.0.1/16"), netip.MustParsePrefix("fd00::1/64")}},
			},
			Attachments: []podnetworks.Attachment{{Interface: "eth0"}, {Interface: "net1"}},
		}
		if change != nil {
			change(out)
		}
		return out
	}
	const same = `{"cniVersion":"1.1.0","interfaces":[{"name":"veth9"},{"name":"eth0","sandbox":"/n"},{"name":"net1","mac":"0A:00:00:00:00:01","sandbox":"/n"}],` +
		`"ips":[{"address":"fd00::1/64","interface":2},{"address":"10.244.0.9/24","interface":1},{"address":"10.10.0.1/16","interface":2}]}`
	const without = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/n"}]}`
	for _, test := range []struct {
		name, previous string
		record         *Sandbox
		want           string
	}{
		{"nothing, of an older binary", ``, record(nil), ""},
		{"the same, in another order", same, record(nil), ""},
		{"an interface is missing", without, record(nil), "prevResult lacks interface net1"},
		{"it came by hot plug", without, record(func(s *Sandbox) { s.notePlugged("net1") }), ""},
		{"it went by hot plug", same, record(func(s *Sandbox) {
			s.Interfaces, s.Attachments = nil, s.Attachments[:1]
			s.notePlugged("net1")
		}), ""},
		{"an interface that was never given", same, record(func(s *Sandbox) {
			s.Interfaces, s.Attachments = nil, s.Attachments[:1]
		}), "prevResult has an interface net1 that the sandbox was not given"},
		{"more of a delegate's", same, record(func(s *Sandbox) {
			s.Interfaces, s.Attachments, s.Delegates = nil, s.Attachments[:1], []string{"other"}
		}), ""},
		{"another MAC", same, record(func(s *Sandbox) { s.Interfaces[0].MAC = "0a:00:00:00:00:02" }),
			"prevResult has MAC 0A:00:00:00:00:01 for interface net1, not 0a:00:00:00:00:02"},
		{"an address less", same, record(func(s *Sandbox) { s.Interfaces[0].Addresses = s.Interfaces[0].Addresses[:1] }),
			"prevResult has addresses [fd00::1/64 10.10.0.1/16] for interface net1, not [10.10.0.1/16]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wrong, err := contradictions(test.record, json.RawMessage(test.previous))
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if err := errors.Join(wrong...); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := contradictions(record(nil), json.RawMessage(`{`)); err == nil {
		t.Error("a result that cannot be read was accepted")
	}
}

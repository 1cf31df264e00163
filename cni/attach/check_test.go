// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
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
			s.Interfaces, s.Attachments, s.Delegates = nil, s.Attachments[:1], []string{"eth0"}
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

// What the ADD answered beside names, MACs and addresses.
func TestWhatContradictsTheRestOfTheResult(t *testing.T) {
	const same = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"0a:00:00:00:00:01","mtu":1400,"sandbox":"/n"},{"name":"net2","sandbox":"/n"}],` +
		`"ips":[{"address":"10.10.0.1/16","interface":0,"gateway":"10.10.0.254"}],` +
		`"routes":[{"dst":"192.168.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.10.0.254"},{"dst":"10.96.0.0/16","gw":"10.10.0.2"}],"dns":{"nameservers":["10.10.0.53"],"search":["a.example"]}}`
	for name, test := range map[string]struct {
		from, to string // what the runtime has instead
		change   func(*Sandbox)
		want     string
	}{
		"the same":                       {},
		"no MTU, of an older version":    {from: `"mtu":1400,`, to: ""},
		"another MTU":                    {from: "1400", to: "1500", want: "prevResult has MTU 1500 for interface eth0, not 1400"},
		"another gateway":                {from: `"gateway":"10.10.0.254"`, to: `"gateway":"10.10.0.253"`, want: "prevResult has gateway 10.10.0.253 for interface eth0, not 10.10.0.254"},
		"another next hop":               {from: `"gw":"10.10.0.254"`, to: `"gw":"10.10.0.253"`, want: "prevResult lacks the route to 0.0.0.0/0 via 10.10.0.254 of interface eth0"},
		"a route less":                   {from: `{"dst":"192.168.0.0/16"},`, to: "", want: "prevResult lacks the route to 192.168.0.0/16 of interface eth0"},
		"a next hop more":                {from: `"192.168.0.0/16"`, to: `"192.168.0.0/16","gw":"10.10.0.9"`, want: "prevResult lacks the route to 192.168.0.0/16 of interface eth0"},
		"other DNS":                      {from: "10.10.0.53", to: "10.10.0.54", want: "prevResult has DNS servers [10.10.0.54] and search [a.example], not [10.10.0.53] and [a.example]"},
		"the cluster network's DNS":      {from: "eth0", to: "net1", change: func(s *Sandbox) { s.Interfaces[0].Name, s.Attachments[0].Interface = "net1", "net1" }},
		"a delegate's interface":         {change: func(s *Sandbox) { s.Delegates = []string{"net2"} }},
		"a delegate's interface is lost": {change: func(s *Sandbox) { s.Delegates = []string{"net3"} }, want: "prevResult lacks interface net3"},
	} {
		t.Run(name, func(t *testing.T) {
			record := &Sandbox{
				Interfaces: []link.Interface{{
					Name: "eth0", MAC: "0a:00:00:00:00:01", MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.10.0.1/16")},
					Routes: []link.Route{
						{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.10.0.254")}, {To: netip.MustParsePrefix("192.168.0.0/16")},
					},
				}},
				Attachments: []podnetworks.Attachment{{Interface: "eth0", DNS: &podnetworks.AttachmentDNS{Nameservers: []string{"10.10.0.53"}, Search: []string{"a.example"}}}, {Interface: "net2"}},
			}
			if test.change != nil {
				test.change(record)
			}
			previous := same
			if test.from != "" {
				previous = strings.ReplaceAll(same, test.from, test.to)
			}
			wrong, err := contradictions(record, json.RawMessage(previous))
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
}

// Nothing was given by an ADD that failed.
func TestCheckOfWhatIsNotAttached(t *testing.T) {
	w := failedWithDelegates(t)
	sandbox := sandboxOf("c1")
	if err := w.check(t.Context(), &sandbox, nil); err == nil || !strings.Contains(err.Error(), "was given no networks") {
		t.Errorf("got %v", err)
	}
}

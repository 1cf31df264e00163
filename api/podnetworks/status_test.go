// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package podnetworks

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFormatStatusWritesTheNPWGForm(t *testing.T) {
	got, err := FormatStatus([]Attachment{
		{Name: "management", Interface: "eth0", IPs: []string{"10.10.0.5", "fd00:10:10::a0a:5"}, MAC: "0a:58:0a:0a:00:05", MTU: 1500, Default: true, Gateway: []string{"10.10.0.1"}},
		{Name: "data", Interface: "eth1", DNS: &AttachmentDNS{Nameservers: []string{"10.20.0.53"}, Search: []string{"data.example"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"name":"management","interface":"eth0","ips":["10.10.0.5","fd00:10:10::a0a:5"],"mac":"0a:58:0a:0a:00:05","mtu":1500,"default":true,"gateway":["10.10.0.1"]},` +
		`{"name":"data","interface":"eth1","dns":{"nameservers":["10.20.0.53"],"search":["data.example"]}}]`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestParseStatusReadsWhatOthersWrite(t *testing.T) {
	annotation := `[{
		"name": "kindnet", "interface": "eth0", "ips": ["10.244.1.5"], "default": true, "dns": {}, "unknown": {"a": 1},
		"device-info": {"type": "pci", "version": "1.1.0"}
	}]`
	got, err := ParseStatus(annotation)
	if err != nil {
		t.Fatal(err)
	}
	want := []Attachment{{
		Name: "kindnet", Interface: "eth0", IPs: []string{"10.244.1.5"}, Default: true, DNS: &AttachmentDNS{},
		DeviceInfo: json.RawMessage(`{"type": "pci", "version": "1.1.0"}`),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
}

func TestStatusSurvivesWritingAndReading(t *testing.T) {
	want := []Attachment{{Name: "data", Interface: "eth1", IPs: []string{"10.20.0.5"}, MAC: "0a:58:0a:14:00:05", MTU: 9000}}
	text, err := FormatStatus(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseStatus(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
}

func TestParseStatusOfNothing(t *testing.T) {
	got, err := ParseStatus("")
	if err != nil || got != nil {
		t.Errorf("got %+v, %v; want no attachments", got, err)
	}
}

func TestParseStatusRefusesWhatIsNoList(t *testing.T) {
	for _, annotation := range []string{"{}", "management@eth0", `[{"name": 5}]`, `[] []`} {
		got, err := ParseStatus(annotation)
		if err == nil {
			t.Errorf("%s: accepted as %+v", annotation, got)
			continue
		}
		if !strings.HasPrefix(err.Error(), "reading network-status: ") {
			t.Errorf("%s: message %q does not say what was read", annotation, err)
		}
	}
}

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/link"
)

// The NIC is in network-status: of two behind a physical network, the endpoints
// of a pod go by its own.
func TestAnAttachmentNamesTheNICThatItShares(t *testing.T) {
	network := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: "data"}}
	shares, whole := wanted{network: network, nic: "ens2"}, wanted{network: network}
	got := attachments([]wanted{shares, whole}, []link.Interface{{Name: "net1", Parent: "np-ens2"}, {Name: "net2", Parent: "ens3", NIC: &link.NIC{}}})
	want := []podnetworks.Attachment{{Name: "data", Interface: "net1", NIC: "ens2"}, {Name: "data", Interface: "net2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	text, err := podnetworks.FormatStatus(got)
	if err != nil {
		t.Fatal(err)
	}
	const form = `[{"name":"data","interface":"net1","netplane.io/nic":"ens2"},{"name":"data","interface":"net2"}]`
	if text != form {
		t.Errorf("network-status %s, want %s", text, form)
	}
}

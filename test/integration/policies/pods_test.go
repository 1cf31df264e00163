// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package policies

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

func TestPodThatAsksForNetworksIsCreated(t *testing.T) {
	tests := []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"as it should", askingPod("p", placedPod), ""},
		{"other scheduler, nothing asked", newPod("p", nil), ""},
		{"host network, nothing asked", newPod("p", func(p *corev1.Pod) { p.Spec.HostNetwork = true }), ""},
		{"on a node, nothing asked", newPod("p", func(p *corev1.Pod) { p.Spec.NodeName = "worker" }), ""},
		{"default scheduler", askingPod("p", nil),
			"pod default/p: annotation netplane.io/networks asks for networks, but spec.schedulerName is default-scheduler, which does not know them: set it to netplane-scheduler"},
		{"past the scheduler", askingPod("p", func(p *corev1.Pod) { placedPod(p); p.Spec.NodeName = "worker" }),
			"pod default/p: annotation netplane.io/networks asks for networks, but spec.nodeName is set to worker, past the scheduler: use spec.nodeSelector or spec.affinity instead"},
		{"host network", askingPod("p", func(p *corev1.Pod) { placedPod(p); p.Spec.HostNetwork = true }),
			"pod default/p: annotation netplane.io/networks asks for networks, but with spec.hostNetwork the pod has no interfaces of its own"},
		{"name made by the server", askingPod("", func(p *corev1.Pod) { p.GenerateName = "gen-" }), "pod default/gen-"},
		{"blank annotation, which asks for nothing", newPod("p", func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationNetworks] = " \n" }), ""},
		{"empty list", newPod("p", func(p *corev1.Pod) { p.Annotations[v1alpha1.AnnotationNetworks] = "[]" }), "set it to netplane-scheduler"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := env.admin.Create(t.Context(), tt.pod)
			if err == nil {
				removeAfter(t, tt.pod)
			}
			check(t, err, tt.want)
		})
	}
}

// patchPod writes a pod through each door that can change its annotations.
func patchPod(t *testing.T, c client.Client, name, patch, want string) {
	t.Helper()
	raw := client.RawPatch(types.MergePatchType, []byte(patch))
	check(t, c.Patch(t.Context(), newPod(name, nil), raw), want)
	check(t, c.Status().Patch(t.Context(), newPod(name, nil), raw), want)
}

func TestNetworksOfABoundPodAreFixedUntilTheyAreAttached(t *testing.T) {
	const fixed = ": annotation netplane.io/networks is fixed while the pod, which is bound to worker, has no annotation netplane.io/attached-networks"
	boundPod(t, "bound", "worker", func(p *corev1.Pod) {
		placedPod(p)
		p.Annotations[v1alpha1.AnnotationNetworks] = "management@eth0"
	})
	boundPod(t, "bound-plain", "worker", placedPod)
	patchPod(t, env.admin, "bound", `{"metadata":{"annotations":{"netplane.io/networks":"management@eth0,data"}}}`, "pod default/bound"+fixed)
	patchPod(t, env.admin, "bound", `{"metadata":{"annotations":{"netplane.io/networks":null}}}`, "pod default/bound"+fixed)
	patchPod(t, env.admin, "bound-plain", `{"metadata":{"annotations":{"netplane.io/networks":"data"}}}`, "pod default/bound-plain"+fixed)
	patchPod(t, env.admin, "bound", `{"metadata":{"labels":{"app":"b"},"annotations":{"note":"y"}}}`, "")
}

func TestNetworksOfAnAttachedPodMayChangeButForEth0(t *testing.T) {
	const (
		block  = "- name: management\n  ifname: eth0\n- name: data\n"
		flow   = `[{name: management, ifname: eth0}, {name: data}]`
		inline = "- {name: management, ifname: eth0}\n- {name: data}"
	)
	stays := func(item string) string { return "keep its item as it is written (" + item + ")" }
	for name, test := range map[string]struct {
		from, to string // an empty text is no annotation
		want     string
	}{
		"added":                              {"data@eth1", "data@eth1, backup@eth2", ""},
		"removed":                            {"data@eth1,backup@eth2", "data@eth1", ""},
		"stripped":                           {"data@eth1", "", ""},
		"from nothing":                       {"", "data@eth1", ""},
		"beside eth0":                        {"management@eth0,data@eth1", "data@eth2, management@eth0", ""},
		"malformed, which the agent refuses": {"data@eth1", "data@@", ""},
		"eth0 added":                         {"data@eth1", "data@eth1,management@eth0", stays("")},
		"eth0 removed":                       {"management@eth0,data@eth1", "data@eth1", stays("management@eth0")},
		"eth0 stripped":                      {"management@eth0", "", stays("management@eth0")},
		"eth0 changed":                       {"management@eth0", "data@eth0", stays("management@eth0")},
		"eth0 twice":                         {"management@eth0", "management@eth0,management@eth0", stays("management@eth0")},
		"eth0 in another form":               {"management@eth0", flow, stays("management@eth0")},
		"block style, beside eth0":           {block, block + "- name: backup\n", ""},
		"block style, eth0 changed":          {block, "- name: other\n  ifname: eth0\n- name: data\n", stays("name: management   ifname: eth0")},
		"block style, eth0 removed":          {block, "- name: data\n", stays("name: management   ifname: eth0")},
		"flow style, beside eth0":            {flow, `[{name: backup}, {name: management, ifname: eth0}]`, ""},
		"flow style, eth0 changed":           {flow, `[{name: management, ifname: eth0, mac: "0a:00:00:00:00:01"}, {name: data}]`, stays("{name: management, ifname: eth0}")},
		"JSON, beside eth0":                  {`[{"name":"management","ifname":"eth0"}]`, `[{"name":"management","ifname":"eth0"},{"name":"data"}]`, ""},
		"JSON, eth0 stripped":                {`[{"name":"management","ifname":"eth0"}]`, "", stays(`{"name":"management","ifname":"eth0"}`)},
		"flow items, beside eth0":            {inline, "- {name: management, ifname: eth0}", ""},
		"flow items, eth0 changed":           {inline, "- {name: data, ifname: eth0}", stays("{name: management, ifname: eth0}")},
	} {
		t.Run(name, func(t *testing.T) {
			pod := "attached-" + strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(name))
			boundPod(t, pod, "worker", func(p *corev1.Pod) {
				placedPod(p)
				p.Annotations[v1alpha1.AnnotationNetworks] = "placeholder"
				if test.from != "" {
					p.Annotations[v1alpha1.AnnotationNetworks] = test.from
				}
			})
			attached := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"netplane.io/attached-networks":""}}}`))
			check(t, agentOf(t, "worker").Status().Patch(t.Context(), newPod(pod, nil), attached), "")
			if test.from == "" {
				patchPod(t, env.admin, pod, `{"metadata":{"annotations":{"netplane.io/networks":null}}}`, "")
			}
			value := any(test.to)
			if test.to == "" {
				value = nil
			}
			patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{v1alpha1.AnnotationNetworks: value}}})
			if err != nil {
				t.Fatal(err)
			}
			patchPod(t, env.admin, pod, string(patch), test.want)
		})
	}
}

func TestNetworksOfAWaitingPodMayChange(t *testing.T) {
	create(t, askingPod("waiting", placedPod))
	create(t, newPod("waiting-plain", nil))
	patchPod(t, env.admin, "waiting", `{"metadata":{"annotations":{"netplane.io/networks":"data"}}}`, "")
	patchPod(t, env.admin, "waiting", `{"metadata":{"annotations":{"netplane.io/networks":null}}}`, "")
	patchPod(t, env.admin, "waiting-plain", `{"metadata":{"annotations":{"netplane.io/networks":"data"}}}`, "set it to netplane-scheduler")
}

func TestNetworkStatusIsWrittenByListedAccountsOnly(t *testing.T) {
	const status = `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`
	const sandbox = `{"metadata":{"annotations":{"netplane.io/network-status-sandbox":"s2"}}}`
	const removal = `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":null}}}`
	refusal := func(pod string) string {
		return "pod default/" + pod + ": annotations k8s.v1.cni.cncf.io/network-status, netplane.io/network-status-sandbox and netplane.io/attached-networks are written by the node's agent only, not by admin"
	}
	tenant, err := env.as("admin", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*corev1.Pod){
		"asking": func(p *corev1.Pod) { placedPod(p); p.Annotations[v1alpha1.AnnotationNetworks] = "data" },
		"plain":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			boundPod(t, name, "worker", edit)
			patchPod(t, tenant, name, status, refusal(name))
			patchPod(t, tenant, name, sandbox, refusal(name))
			patchPod(t, tenant, name, `{"metadata":{"annotations":{"netplane.io/attached-networks":""}}}`, refusal(name))
			raw := client.RawPatch(types.MergePatchType, []byte(status))
			check(t, agentOf(t, "worker").Status().Patch(t.Context(), newPod(name, nil), raw), "")
			patchPod(t, tenant, name, removal, refusal(name))
			patchPod(t, tenant, name, `{"metadata":{"annotations":{"note":"z"}}}`, "")
		})
	}
	for _, key := range []string{v1alpha1.AnnotationNetworkStatus, v1alpha1.AnnotationNetworkStatusSandbox, v1alpha1.AnnotationAttached} {
		forged := newPod("forged", func(p *corev1.Pod) { p.Annotations[key] = "[]" })
		check(t, tenant.Create(t.Context(), forged), refusal("forged"))
	}
}

func TestMultusMayWriteItsOwnStatus(t *testing.T) {
	boundPod(t, "multus-pod", "worker", nil)
	// Its role comes with Multus; here any that is wide enough will do.
	create(t, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "multus"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "netplane-agent"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "multus"}},
	})
	multus, err := env.as("system:serviceaccount:kube-system:multus", nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`))
	if err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 10*time.Second, true, func(ctx context.Context) (bool, error) {
		err := multus.Status().Patch(ctx, newPod("multus-pod", nil), raw)
		return !strings.Contains(fmt.Sprint(err), "cannot patch resource"), nil
	}); err != nil {
		t.Fatalf("waiting for the role to be known: %v", err)
	}
	check(t, multus.Status().Patch(t.Context(), newPod("multus-pod", nil), raw), "")
}

func TestBindingBringsNoAnnotations(t *testing.T) {
	for _, key := range []string{v1alpha1.AnnotationNetworks, v1alpha1.AnnotationNetworkStatus, v1alpha1.AnnotationNetworkStatusSandbox, v1alpha1.AnnotationAttached} {
		pod := newPod("to-bind", nil)
		create(t, pod)
		check(t, env.admin.SubResource("binding").Create(t.Context(), pod, newBinding("worker", map[string]string{key: "[]"})),
			"metadata.annotations may carry neither netplane.io/networks nor a network-status: bind without them")
		check(t, env.admin.SubResource("binding").Create(t.Context(), pod, newBinding("worker", map[string]string{"example.org/x": "y"})), "")
		if err := env.admin.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
}

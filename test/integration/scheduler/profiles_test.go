// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// profiles are the overlays with other configurations of the scheduler.
const profiles = "../../../manifests/profiles"

func TestEveryShippedConfigurationIsValid(t *testing.T) {
	for file, want := range map[string][]string{
		filepath.Join(manifests, "config.yaml"):                     {"netplane-scheduler"},
		filepath.Join(profiles, "default-scheduler", "config.yaml"): {"netplane-scheduler", "default-scheduler"},
		filepath.Join(profiles, "numa", "config.yaml"):              {"netplane-scheduler", "netplane-scheduler-numa"},
	} {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			config, err := options.LoadConfigFromFile(klog.Background(), file)
			if err != nil {
				t.Fatal(err)
			}
			if err := validation.ValidateKubeSchedulerConfiguration(config); err != nil {
				t.Error(err)
			}
			var names []string
			for i := range config.Profiles {
				names = append(names, config.Profiles[i].SchedulerName)
				if !slices.Contains(config.Profiles[i].Plugins.Names(), "NetworkFit") {
					t.Errorf("profile %s does not enable NetworkFit", names[i])
				}
			}
			if !slices.Equal(names, want) {
				t.Errorf("it serves %v, want %v", names, want)
			}
		})
	}
	t.Run("a misspelt field is refused", func(t *testing.T) {
		raw, err := os.ReadFile(filepath.Join(profiles, "numa", "config.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(file, []byte(strings.Replace(string(raw), "cacheResyncPeriodSeconds", "cacheResyncSeconds", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := options.LoadConfigFromFile(klog.Background(), file); err == nil || !strings.Contains(err.Error(), "cacheResyncSeconds") {
			t.Errorf("loading it says %v, and not that cacheResyncSeconds is unknown", err)
		}
	})
}

// The policy must admit pods with networks to just those profiles that place them.
func TestThePolicyNamesEveryProfileOfItsOverlay(t *testing.T) {
	for _, overlay := range []string{"default-scheduler", "numa"} {
		config, err := options.LoadConfigFromFile(klog.Background(), filepath.Join(profiles, overlay, "config.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for i := range config.Profiles {
			names = append(names, "'"+config.Profiles[i].SchedulerName+"'")
		}
		if got, want := policyPatch(t, overlay).Value, "["+strings.Join(names, ", ")+"]"; got != want {
			t.Errorf("overlay %s: the policy names %s, the configuration %s", overlay, got, want)
		}
	}
}

// operation is one of a JSON patch.
type operation struct{ Op, Path, Value string }

// policyPatch reads what an overlay makes of the policy on pods with networks.
func policyPatch(t *testing.T, overlay string) operation {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(profiles, overlay, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var kustomization struct {
		Patches []struct {
			Target struct{ Kind, Name string }
			Patch  string
		}
	}
	if err := yaml.Unmarshal(raw, &kustomization); err != nil {
		t.Fatal(err)
	}
	for _, patch := range kustomization.Patches {
		if patch.Target.Name != "netplane-pod-networks" {
			continue
		}
		var operations []operation
		if err := yaml.Unmarshal([]byte(patch.Patch), &operations); err != nil {
			t.Fatal(err)
		}
		if len(operations) == 1 && operations[0].Op == "replace" && operations[0].Path == "/spec/variables/0/expression" {
			return operations[0]
		}
	}
	t.Fatalf("overlay %s does not replace the policy's list of schedulers", overlay)
	return operation{}
}

// One scheduler in the stock one's place: pods that name no scheduler are its
// own, with networks or without.
func TestTheStockSchedulersPlaceIsTaken(t *testing.T) {
	config, api := ownServer(t)
	applyPolicy(t, api, policyPatch(t, "default-scheduler").Value)
	file, err := schedulerprocess.WriteConfig(filepath.Join(profiles, "default-scheduler", "config.yaml"), config, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	scheduler := schedulerprocess.Start(t, file, "--leader-elect=false")
	w := newWorldAt(t, api)
	w.node("nic", "phy-net1")
	w.node("bare")
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	w.block(data, "nic", "10.20.1.0/29")
	byDefault := func(p *v1.Pod) { p.Spec.SchedulerName = "" }
	for i := range 7 {
		if node := w.awaitBound(w.pod(fmt.Sprintf("networks-%d", i), "data", byDefault)); node != "nic" {
			t.Errorf("a pod with network data is bound to %s, which has no NIC", node)
		}
	}
	w.awaitBound(w.pod("plain", "", byDefault))
	w.awaitPending(w.pod("one-too-many", "data"), `1 node(s) had no free address in network "data"`) // the other profile counts the same pods
	if without := unbatched(scheduler); without != nil {
		t.Errorf("profiles %v have no batching", without)
	}
	if err := api.Create(t.Context(), &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: w.namespace, Annotations: map[string]string{v1alpha1.AnnotationNetworks: "data"}},
		Spec:       v1.PodSpec{SchedulerName: "another", Containers: []v1.Container{{Name: "c", Image: "none"}}},
	}); err == nil || !strings.Contains(err.Error(), "set it to netplane-scheduler or default-scheduler") {
		t.Errorf("a pod with networks for a scheduler that does not know them: %v", err)
	}
}

// applyPolicy installs the policy on pods with networks, for these schedulers,
// and waits until it is in force.
func applyPolicy(t *testing.T, api client.Client, schedulers string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(manifests, "..", "policies", "pod-networks.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const shipped = `expression: "['netplane-scheduler']"`
	if strings.Count(string(raw), shipped) != 1 {
		t.Fatalf("the policy does not say %s once", shipped)
	}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(raw), shipped, `expression: "`+schedulers+`"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := apiserver.Apply(t.Context(), api, file); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		err := api.Create(t.Context(), &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "refused", Namespace: "default", Annotations: map[string]string{v1alpha1.AnnotationNetworks: "x"}},
			Spec:       v1.PodSpec{SchedulerName: "another", Containers: []v1.Container{{Name: "c", Image: "none"}}},
		}, client.DryRunAll)
		if !apierrors.IsInvalid(err) {
			return fmt.Sprintf("the policy is not in force: creating a pod that it refuses says %v", err)
		}
		return ""
	})
}

func TestNodeTopologyIsAskedForOnlyByTheProfileThatUsesIt(t *testing.T) {
	file, err := schedulerprocess.WriteConfig(filepath.Join(profiles, "numa", "config.yaml"), connection, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	message := startMessage(t, 15*time.Second, file) // and the base's configuration runs at the same API server
	for _, want := range []string{"noderesourcetopologies.topology.node.k8s.io (v1alpha2)", "take NodeResourceTopologyMatch out of the profiles"} {
		if !strings.Contains(message, want) {
			t.Errorf("the scheduler ended with %q, which does not say %q", message, want)
		}
	}
}

func TestPodsLandWhereNetworksAndNUMANodesFit(t *testing.T) {
	config, api := ownServer(t, apiserver.WithCRDs(nodeTopologyCRD(t)))
	if err := apiserver.Apply(t.Context(), api, filepath.Join(profiles, "numa", "rbac.yaml")); err != nil {
		t.Fatal(err)
	}
	w := newWorldAt(t, api)
	data := w.network("data", "phy-net1", "10.20.0.0/16")
	for i, node := range []string{"split", "whole", "bare"} {
		var physical []string
		if node != "bare" {
			physical = []string{"phy-net1"}
		}
		w.node(node, physical...)
		w.block(data, node, fmt.Sprintf("10.20.%d.0/29", i+1))
	}
	// All have the same CPUs, but split has two on each of its NUMA nodes.
	w.create(nodeTopology("split", "2", "2"))
	w.create(nodeTopology("whole", "4", "0"))
	w.create(nodeTopology("bare", "4", "4"))
	file, err := schedulerprocess.WriteConfig(filepath.Join(profiles, "numa", "config.yaml"), config, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	scheduler := schedulerprocess.Start(t, file, "--leader-elect=false")

	threeCPUs := func(scheduler string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.SchedulerName = scheduler
			request := v1.ResourceList{v1.ResourceCPU: resource.MustParse("3"), v1.ResourceMemory: resource.MustParse("64Mi")}
			p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: request, Limits: request}
		}
	}
	const aligning = "netplane-scheduler-numa"
	if node := w.awaitBound(w.pod("aligned", "data", threeCPUs(aligning))); node != "whole" {
		t.Errorf("a pod with 3 CPUs is bound to %s, want whole: bare has no NIC, split has 2 CPUs on each NUMA node", node)
	}
	// Nobody reports anew what whole has left: the plugin itself knows what it gave away.
	second := w.pod("second", "data", threeCPUs(aligning))
	w.awaitPending(second, "2 cannot align")
	w.awaitPending(second, `1 node(s) had no ready netplane agent`)
	if node := w.awaitBound(w.pod("indifferent", "data", threeCPUs("netplane-scheduler"))); node == "bare" {
		t.Error("the other profile bound a pod to a node without a NIC")
	}
	if without := unbatched(scheduler); !slices.Equal(without, []string{aligning}) {
		t.Errorf("profiles %v have no batching, want %s only, as its manifest says", without, aligning)
	}
}

// nodeTopologyCRD is in the module that the plugin comes from.
func nodeTopologyCRD(t *testing.T) string {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/scheduler-plugins").Output()
	if err != nil {
		t.Fatalf("finding the module scheduler-plugins: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(dir)), "manifests", "noderesourcetopology", "crd.yaml")
}

// nodeTopology is what a node's agent would write: how many CPUs are available
// on each NUMA node, under the kubelet's policy single-numa-node.
func nodeTopology(node string, cpus ...string) client.Object {
	var zones []any
	for i, available := range cpus {
		cpu := map[string]any{"name": "cpu", "capacity": "4", "allocatable": "4", "available": available}
		memory := map[string]any{"name": "memory", "capacity": "4Gi", "allocatable": "4Gi", "available": "4Gi"}
		zones = append(zones, map[string]any{"name": fmt.Sprintf("node-%d", i), "type": "Node", "resources": []any{cpu, memory}})
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"zones": zones,
		"attributes": []any{
			map[string]any{"name": "topologyManagerPolicy", "value": "single-numa-node"},
			map[string]any{"name": "topologyManagerScope", "value": "container"},
		},
	}}
	object.SetGroupVersionKind(schema.GroupVersionKind{Group: "topology.node.k8s.io", Version: "v1alpha2", Kind: "NodeResourceTopology"})
	object.SetName(node)
	return object
}

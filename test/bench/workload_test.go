// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/networkfit"
)

// shipped is the configuration that manifests/ installs.
const shipped = "../../manifests/base/scheduler/config.yaml"

// demands are the numbers of networks that pods ask for, in the order in which
// they are measured.
func demands() []int { return []int{0, 1, 2, 4} }

// maxNetworks is the largest of demands.
const maxNetworks = 4

// warmUp is the namespace of the pods that are not measured.
const warmUp = "warm-up"

// namespaceOf is where the pods with so many networks are.
func namespaceOf(networks int) string { return fmt.Sprintf("measure-%d", networks) }

func label(networks int) string {
	if networks == 1 {
		return "1-network"
	}
	return fmt.Sprintf("%d-networks", networks)
}

// testCase is scheduler_perf's, as far as it is used here.
type testCase struct {
	Name                string           `json:"name"`
	SchedulerConfigPath string           `json:"schedulerConfigPath,omitempty"`
	WorkloadTemplate    []map[string]any `json:"workloadTemplate"`
	Workloads           []workload       `json:"workloads"`
}

type workload struct {
	Name   string         `json:"name"`
	Labels []string       `json:"labels"`
	Params map[string]int `json:"params"`
}

// writeWorkload writes scheduler_perf's input for one profile into dir. All
// demands are measured one after the other in the same cluster: making it
// takes longer than a measurement.
func writeWorkload(dir string, p profile, s settings) (string, error) {
	test := testCase{
		Name: string(p),
		Workloads: []workload{{
			Name: fmt.Sprintf("%dNodes_%dPods", s.nodes, s.pods), Labels: []string{"performance"},
			Params: map[string]int{"nodes": s.nodes, "warmUp": max(100, s.nodes/5), "pods": s.pods},
		}},
	}
	var err error
	if test.SchedulerConfigPath, err = writeConfig(dir, p); err != nil {
		return "", err
	}
	node, err := write(dir, "node.yaml", nodeTemplate())
	if err != nil {
		return "", err
	}
	test.WorkloadTemplate = []map[string]any{{"opcode": "createNodes", "countParam": "$nodes", "nodeTemplatePath": node}}
	for i, networks := range demands() {
		pod, err := write(dir, fmt.Sprintf("pod-%d.yaml", networks), podTemplate(p, networks))
		if err != nil {
			return "", err
		}
		if i == 0 {
			test.WorkloadTemplate = append(test.WorkloadTemplate, map[string]any{
				"opcode": "createPods", "countParam": "$warmUp", "podTemplatePath": pod, "namespace": warmUp,
			})
		}
		test.WorkloadTemplate = append(test.WorkloadTemplate, map[string]any{
			"opcode": "createPods", "countParam": "$pods", "podTemplatePath": pod, "namespace": namespaceOf(networks), "collectMetrics": true,
		})
	}
	return write(dir, "workload.yaml", []testCase{test})
}

func write(dir, name string, content any) (string, error) {
	raw, err := yaml.Marshal(content)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, os.WriteFile(path, raw, 0o600)
}

// nodeTemplate never runs out of anything but addresses.
func nodeTemplate() map[string]any {
	resources := map[string]any{"pods": "500", "cpu": "64", "memory": "512Gi"}
	return map[string]any{
		"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"generateName": "node-"},
		"status": map[string]any{
			"capacity": resources, "allocatable": resources,
			"conditions": []any{map[string]any{"type": "Ready", "status": "True"}},
		},
	}
}

// podTemplate is the same pod for each profile, annotation included: it means
// nothing to the stock scheduler, but it costs the API server something.
func podTemplate(p profile, networks int) map[string]any {
	metadata := map[string]any{"generateName": "pod-"}
	var names []string
	for i := range networks {
		names = append(names, networkName(i))
	}
	if len(names) > 0 {
		metadata["annotations"] = map[string]any{v1alpha1.AnnotationNetworks: strings.Join(names, ",")}
	}
	scheduler := v1alpha1.DefaultSchedulerName
	if p == stock {
		scheduler = "default-scheduler"
	}
	requests := map[string]any{"cpu": "100m", "memory": "500Mi"}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
		"spec": map[string]any{
			"schedulerName": scheduler,
			"containers":    []any{map[string]any{"name": "c", "image": "none", "resources": map[string]any{"requests": requests, "limits": requests}}},
		},
	}
}

// writeConfig returns the path of the scheduler's configuration; it is empty
// for kube-scheduler's own default.
func writeConfig(dir string, p profile) (string, error) {
	if p == stock {
		return "", nil
	}
	raw, err := os.ReadFile(shipped)
	if err != nil {
		return "", err
	}
	var config any
	if err := yaml.Unmarshal(raw, &config); err != nil {
		return "", fmt.Errorf("reading %s: %w", shipped, err)
	}
	if p == bare {
		config = without(config, networkfit.Name)
	}
	return write(dir, "config.yaml", config)
}

// without drops each list item that is an object with this name.
func without(value any, name string) any {
	switch v := value.(type) {
	case map[string]any:
		for key := range v {
			v[key] = without(v[key], name)
		}
		return v
	case []any:
		v = slices.DeleteFunc(v, func(item any) bool {
			object, ok := item.(map[string]any)
			return ok && object["name"] == name
		})
		for i := range v {
			v[i] = without(v[i], name)
		}
		return v
	}
	return value
}

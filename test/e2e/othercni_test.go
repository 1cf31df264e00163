// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	cniFolder = "/etc/cni/net.d/"
	// otherConf sorts between ours and that of the cluster's network.
	otherConf, otherNetwork, otherData = cniFolder + "05-other.conflist", "e2e-other-net", "/run/cni/e2e-other"
)

// otherConfiguration is the node's default network under another name, with the
// upper half of its addresses.
func otherConfiguration(t *testing.T, node string) (conf, name, data string) {
	t.Helper()
	raw := mustOnNode(t, node, "cat", cniFolder+"10-default.conflist")
	var list map[string]any
	if err := json.Unmarshal([]byte(raw), &list); err != nil {
		t.Fatal(err)
	}
	name, _ = list["name"].(string)
	list["name"] = otherNetwork
	plugins, _ := list["plugins"].([]any)
	for _, p := range plugins {
		plugin, _ := p.(map[string]any)
		ipam, ok := plugin["ipam"].(map[string]any)
		if !ok {
			continue
		}
		data, _ = ipam["dataDir"].(string)
		ipam["dataDir"] = otherData
		sets, _ := ipam["ranges"].([]any)
		for _, s := range sets {
			set, _ := s.([]any)
			of, _ := set[0].(map[string]any)
			subnet, err := netip.ParsePrefix(fmt.Sprint(of["subnet"]))
			if err != nil {
				t.Fatal(err)
			}
			first := subnet.Addr().AsSlice()
			first[len(first)-1] |= 0x80
			start, _ := netip.AddrFromSlice(first)
			of["rangeStart"] = start.String()
		}
	}
	if name == "" || data == "" {
		t.Skipf("the cluster's own network is not that of our node image: %s", raw)
	}
	out, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return string(out), name, data
}

// awaitWrapped waits until our configuration on a node wraps a network, and the
// runtime uses it.
func awaitWrapped(t *testing.T, node, network string) {
	t.Helper()
	eventually(t, 20*time.Second, "our configuration to wrap "+network, func() error {
		var list struct {
			Plugins []struct {
				Wrapped struct{ Name string } `json:"wrapped"`
			} `json:"plugins"`
		}
		if err := json.Unmarshal([]byte(mustOnNode(t, node, "cat", cniFolder+ourConf)), &list); err != nil {
			return err
		}
		if len(list.Plugins) != 1 || list.Plugins[0].Wrapped.Name != network {
			return fmt.Errorf("it has %+v", list.Plugins)
		}
		return nil
	})
	time.Sleep(2 * time.Second) // containerd reads it when it sees the change
}

// TestAnotherCNIConfigurationComesAndGoes: a node gets another default network
// while pods run, and loses it again. New pods have the new one, with their
// Networks beside it; the others are removed by what made them, so that no
// address stays taken.
func TestAnotherCNIConfigurationComesAndGoes(t *testing.T) {
	node := env.node("worker2")
	conf, own, ownData := otherConfiguration(t, node)
	ns := namespace(t)
	t.Cleanup(func() {
		if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "rm", "-rf", otherConf, otherData); err != nil {
			t.Error(err)
		}
	})
	upper := func(pod *corev1.Pod) bool {
		addr, err := netip.ParseAddr(pod.Status.PodIP)
		return err == nil && addr.AsSlice()[3]&0x80 != 0
	}
	pair := func(name string) []*corev1.Pod {
		pods := []*corev1.Pod{run(t, newPod(ns, name+"-plain", "", on(node))), run(t, newPod(ns, name+"-asking", "management", on(node)))}
		checkAttached(t, pods[1], map[string]string{"net1": netManagement})
		return pods
	}
	// gone deletes pods and looks for what their default network keeps of them.
	gone := func(pods []*corev1.Pod, folder string) {
		t.Helper()
		for _, pod := range pods {
			if held := mustOnNode(t, node, "ls", folder); !strings.Contains(held, pod.Status.PodIP) {
				t.Fatalf("the address %s of pod %s is not in %s: %s", pod.Status.PodIP, pod.Name, folder, held)
			}
			if err := env.client.Delete(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
		}
		for _, pod := range pods {
			eventually(t, 40*time.Second, "pod "+pod.Name+" and its address to be gone", func() error {
				if err := env.client.Get(t.Context(), client.ObjectKeyFromObject(pod), &corev1.Pod{}); client.IgnoreNotFound(err) != nil || err == nil {
					return fmt.Errorf("the pod is there (%v)", err) //nolint:errorlint // err may be nil
				}
				if held := mustOnNode(t, node, "ls", folder); strings.Contains(held, pod.Status.PodIP+"\n") {
					return fmt.Errorf("%s is taken in %s", pod.Status.PodIP, folder)
				}
				return nil
			})
		}
	}

	before := pair("before")
	if _, err := onNode(t.Context(), node, conf, "sh", "-c", "cat >"+otherConf+".new && mv "+otherConf+".new "+otherConf); err != nil {
		t.Fatal(err)
	}
	awaitWrapped(t, node, otherNetwork)
	with := pair("with")
	for _, pod := range with {
		if !upper(pod) {
			t.Errorf("pod %s has the address %s, which is not of the other network", pod.Name, pod.Status.PodIP)
		}
	}
	gone(before, ownData+"/"+own)
	mustOnNode(t, node, "rm", otherConf)
	awaitWrapped(t, node, own)
	after := pair("after")
	for _, pod := range after {
		if upper(pod) {
			t.Errorf("pod %s has the address %s, which is of the network that is gone", pod.Name, pod.Status.PodIP)
		}
	}
	gone(with, otherData+"/"+otherNetwork)
	if err := conditionIs(t.Context(), node, v1alpha1.ConditionAgentReady, "True"); err != nil {
		t.Error(err)
	}
}

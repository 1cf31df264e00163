// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

const (
	// flannelNetwork is what flannel's administrator writes into etcd. Its VNI and
	// port are nobody else's in the test cluster, whose kernel has no br_netfilter.
	flannelNetwork = `{"Network":"10.70.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:70::/48","EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":70,"Port":18472}}`
	// flannelConf is flannel's own example for CNI, but for the bridge's name.
	flannelConf = `{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel","delegate":{"bridge":"e2e-flannel","hairpinMode":true,"isGateway":true,"ipMasq":false}}]}`
	flannelUnit = "e2e-flanneld"
	// subnetFile is where flannel's daemon and its CNI plugin meet.
	subnetFile = "/run/flannel/subnet.env"
)

// program builds one of the programs of test/nodeimage.
func program(t *testing.T, set, name string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../../hack/binaries.sh", set) // #nosec G204 -- a script of this repository
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("building %s: %v", name, err)
	}
	lines := strings.Fields(string(out))
	raw, err := os.ReadFile(filepath.Join(lines[len(lines)-1], name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// putOnNode installs a program on a node until the test ends.
func putOnNode(t *testing.T, node, path string, content []byte) {
	t.Helper()
	if _, err := onNode(t.Context(), node, string(content), "sh", "-c", "cat >"+path+" && chmod 0755 "+path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := onNode(context.WithoutCancel(t.Context()), node, "", "rm", "-f", path); err != nil {
			t.Error(err)
		}
	})
}

// startEtcd runs the cluster's etcd once more, empty and with flannel's network
// in it, and returns its URL.
func startEtcd(t *testing.T, ns string) string {
	t.Helper()
	var own corev1.PodList
	if err := env.client.List(t.Context(), &own, client.InNamespace("kube-system"), client.MatchingLabels{"component": "etcd"}); err != nil || len(own.Items) == 0 {
		t.Fatalf("looking for the cluster's etcd: %v, %d pods", err, len(own.Items))
	}
	pod := newPod(ns, "etcd", "", on(own.Items[0].Spec.NodeName))
	pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	pod.Spec.Containers[0] = corev1.Container{
		Name: "etcd", Image: own.Items[0].Spec.Containers[0].Image, ImagePullPolicy: corev1.PullNever,
		Command:      []string{"etcd", "--data-dir=/data", "--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://0.0.0.0:2379"},
		VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
	}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}}}
	pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](1)
	run(t, pod)
	url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(pod.Status.PodIP), 2379).String()
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	put := fmt.Sprintf(`{"key":%q,"value":%q}`, encode("/coreos.com/network/config"), encode(flannelNetwork))
	eventually(t, 20*time.Second, "etcd to take flannel's network", func() error {
		_, err := onNode(t.Context(), pod.Spec.NodeName, put, "curl", "-fsS", "-m", "3", "-d", "@-", url+"/v3/kv/put")
		return err
	})
	return url
}

// startFlannel runs flannel's daemon on a node, and returns what it wrote for
// its CNI plugin. All that both leave goes at the end of the test.
func startFlannel(t *testing.T, node, etcd string, daemon, plugin []byte) map[string]string {
	t.Helper()
	t.Cleanup(func() {
		clean := "systemctl stop " + flannelUnit + `
			for link in flannel.70 flannel-v6.70 e2e-flannel; do ip link delete $link || true; done
			nft delete table ip flannel-ipv4 || true
			nft delete table ip6 flannel-ipv6 || true
			rm -rf /run/flannel /var/lib/cni/flannel /var/lib/cni/networks/cbr0`
		if out, err := onNode(context.WithoutCancel(t.Context()), node, clean, "sh"); err != nil {
			t.Errorf("removing flannel: %v\n%s", err, out)
		}
	})
	putOnNode(t, node, "/usr/local/bin/flanneld", daemon)
	putOnNode(t, node, "/opt/cni/bin/flannel", plugin)
	mustOnNode(t, node, "systemd-run", "--quiet", "--collect", "--unit="+flannelUnit, "/usr/local/bin/flanneld", "--etcd-endpoints="+etcd, "--iface=eth0", "--subnet-file="+subnetFile)
	out := map[string]string{}
	eventually(t, 60*time.Second, "flannel's subnet of "+node, func() error {
		text, err := onNode(t.Context(), node, "", "cat", subnetFile)
		if err != nil {
			said, _ := onNode(t.Context(), node, "", "journalctl", "--no-pager", "-n", "15", "-u", flannelUnit)
			return fmt.Errorf("%w\n%s", err, said)
		}
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			out[key] = value
		}
		return nil
	})
	return out
}

// TestFlannelMakesANetwork: the daemon and the CNI plugin of flannel are
// installed on two nodes beside the cluster's network. A Network names the plugin,
// and its pods talk through flannel's tunnel.
func TestFlannelMakesANetwork(t *testing.T) {
	daemon, plugin := program(t, "flannel", "flanneld"), program(t, "flannelcni", "flannel")
	infrastructure := namespace(t)
	etcd := startEtcd(t, infrastructure)
	nodes := []string{env.node("worker"), env.node("worker3")}
	subnets := map[string]map[string]string{}
	for _, node := range nodes {
		subnets[node] = startFlannel(t, node, etcd, daemon, plugin)
	}
	onDisk(t, "90-e2e-flannel.conflist", map[string]string{nodes[0]: flannelConf, nodes[1]: flannelConf})
	network := newNetwork(t, "e2e-flannel", v1alpha1.NetworkSpec{PhysicalNet: physManagement, Plugin: "Flannel"})
	first := newNetwork(t, "e2e-flannel-first", v1alpha1.NetworkSpec{
		PhysicalNet: physManagement, Plugin: "Flannel", PluginConfig: &apiextensionsv1.JSON{Raw: []byte(`{"delegate":{"isDefaultGateway":true}}`)},
	})
	ns := namespace(t)
	for _, n := range []*v1alpha1.Network{network, first} {
		awaitNetwork(t, n.Name, "True", v1alpha1.ReasonReady)
	}

	left := createPod(t, newPod(ns, "left", network.Name, on(nodes[0])))
	right := run(t, newPod(ns, "right", network.Name, on(nodes[1])))
	awaitRunning(t, left, 60*time.Second)
	for _, pod := range []*corev1.Pod{left, right} {
		subnet := subnets[pod.Spec.NodeName]
		for key, v6 := range map[string]bool{"FLANNEL_SUBNET": false, "FLANNEL_IPV6_SUBNET": true} {
			within := netip.MustParsePrefix(subnet[key]).Masked()
			if got := addressIn(t, pod, network.Name, v6); !within.Contains(netip.MustParseAddr(got)) {
				t.Errorf("pod %s has %s, not of its node's subnet %s", pod.Name, got, within)
			}
		}
		if got := enter(t, pod).links(t)["net1"].MTU; strconv.Itoa(got) != subnet["FLANNEL_MTU"] {
			t.Errorf("pod %s: net1 has MTU %d, flannel says %s", pod.Name, got, subnet["FLANNEL_MTU"])
		}
	}
	for tunnel, v6 := range map[string]bool{"flannel.70": false, "flannel-v6.70": true} {
		before := tunnelled(t, nodes[0], tunnel)
		enter(t, left).mustReach(t, addressIn(t, right, network.Name, v6), webPort, "right")
		enter(t, right).mustReach(t, addressIn(t, left, network.Name, v6), webPort, "left")
		if after := tunnelled(t, nodes[0], tunnel); after < before+5 {
			t.Errorf("%s of %s has sent %d packets: the pods talk elsewhere", tunnel, nodes[0], after-before)
		}
	}
	pod := run(t, newPod(ns, "first", first.Name+"@eth0", on(nodes[0])))
	if within := netip.MustParsePrefix(subnets[nodes[0]]["FLANNEL_SUBNET"]).Masked(); !within.Contains(netip.MustParseAddr(pod.Status.PodIP)) {
		t.Errorf("with flannel on eth0 the pod's IP is %s, not of %s", pod.Status.PodIP, within)
	}
	mustFetch(t, nodes[0], pod.Status.PodIP, "first")
	enter(t, right).mustReach(t, pod.Status.PodIP, webPort, "first")
	enter(t, pod).mustReach(t, left.Status.PodIP, webPort, "left") // by its default route, over the node
	checkNothingDelegated(t, ns, nodes, "cbr0")

	absent := createPod(t, newPod(ns, "absent", network.Name, on(env.node("worker2"))))
	awaitPending(t, absent, network.Name)
}

// tunnelled is how many packets a device of a node has sent.
func tunnelled(t *testing.T, node, device string) uint64 {
	t.Helper()
	link, ok := parseLinks(t, mustOnNode(t, node, "ip", "-j", "-s", "addr"))[device]
	if !ok {
		t.Fatalf("node %s has no %s", node, device)
	}
	return link.Stats.TX.Packets
}

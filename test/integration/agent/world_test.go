// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/podnetworks"
	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/program"
	"github.com/netplane/netplane/test/isolated"
)

const (
	account  = "netplane-agent"
	nodeName = "worker"
)

// defaultPlugin stands for the cluster's own network: it makes nothing and
// leaves a line for every call.
const defaultPlugin = `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >>"$(dirname "$0")/default.log"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.244.1.9/24","interface":0}]}'
`

const defaultConf = `{"cniVersion": "1.0.0", "name": "default", "plugins": [{"type": "default-plugin", "capabilities": {"portMappings": true}}]}`

// world is a node: its folders, its NIC, its API server and its agent.
type world struct {
	*testing.T
	client                    client.Client
	config                    *rest.Config
	gate                      *gate
	dir, agent                string
	bin, conf, state, mapFile string
	health, metrics           string
	process                   *exec.Cmd
	ended                     chan error
	log                       *output
}

// output is what the agent has said, which tests read while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(text)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		T: t, dir: dir, agent: filepath.Join(dir, "netplane-agent"),
		bin: filepath.Join(dir, "bin"), conf: filepath.Join(dir, "net.d"), mapFile: filepath.Join(dir, "map.yaml"),
		log: &output{},
	}
	// The socket's path must be short.
	state, err := os.MkdirTemp("", "np")
	w.must(err)
	w.state = state
	t.Cleanup(func() { w.must(os.RemoveAll(state)) })
	w.startAPI()
	w.must(os.Mkdir(w.bin, 0o755))
	w.must(os.Mkdir(w.conf, 0o755))
	w.must(os.WriteFile(filepath.Join(w.bin, "default-plugin"), []byte(defaultPlugin), 0o755))
	w.must(os.WriteFile(filepath.Join(w.conf, "10-default.conflist"), []byte(defaultConf), 0o600))
	w.must(os.WriteFile(w.mapFile, []byte("provider: [{alias: phy-net0, ref_nic: eth1}, {alias: phy-net1, ref_nic: eth2}]"), 0o600))
	for target, from := range map[string]string{w.agent: "./cni/agent", filepath.Join(dir, "netplane"): "./cni/plugin"} {
		program.Build(t, target, from)
	}
	t.Cleanup(w.strip)
	w.plug("eth1")
	w.plug("eth2")
	return w
}

// strip takes all links out of the namespace, which the tests share.
func (w *world) strip() {
	links, err := netlink.LinkList()
	w.must(err)
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		// The other end of a pair goes with the first.
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) && !errors.As(err, &gone) {
			w.Error(err)
		}
	}
}

// plug puts a NIC with a cable into the node.
func (w *world) plug(nic string) {
	w.Helper()
	w.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nic, MTU: 1500, TxQLen: -1}, PeerName: "port-" + nic}))
	w.set("port-"+nic, true)
	w.set(nic, true)
}

// unplug takes a NIC out of the node.
func (w *world) unplug(nic string) {
	w.Helper()
	l, err := netlink.LinkByName(nic)
	w.must(err)
	w.must(netlink.LinkDel(l))
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// set brings a NIC up or down.
func (w *world) set(nic string, up bool) {
	w.Helper()
	l, err := netlink.LinkByName(nic)
	w.must(err)
	if up {
		w.must(netlink.LinkSetUp(l))
	} else {
		w.must(netlink.LinkSetDown(l))
	}
}

// startAPI runs an API server with what the agent finds in a cluster.
func (w *world) startAPI() {
	w.Helper()
	w.config = apiserver.Start(w.T, apiserver.WithAPIServerFlag("advertise-address", isolated.Advertised))
	server, err := url.Parse(w.config.Host)
	w.must(err)
	w.gate = newGate(w.T, server.Host)
	w.client, err = apiserver.NewClient(w.config)
	w.must(err)
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	w.must(apiserver.Apply(w.Context(), w.client, apiserver.Manifests+"/agent/rbac.yaml"))
	w.create(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}},
		&v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: "phy-net0"}},
		&v1alpha1.PhysicalNetwork{ObjectMeta: metav1.ObjectMeta{Name: "phy-net1"}},
	)
	w.network("management", v1alpha1.NetworkSpec{PhysicalNet: "phy-net0", Plugin: v1alpha1.PluginMacvlan, Subnet: "10.10.0.0/16", Subnet6: "fd00:10:10::/64"})
	w.network("data", v1alpha1.NetworkSpec{PhysicalNet: "phy-net1", Plugin: v1alpha1.PluginBridge, Subnet: "10.20.0.0/16", Subnet6: "fd00:10:20::/64"})
}

// network makes a Network that the controller would find nothing against.
func (w *world) network(name string, spec v1alpha1.NetworkSpec) {
	w.Helper()
	network := &v1alpha1.Network{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	w.create(network)
	network.Status.ObservedGeneration = network.Generation
	apimeta.SetStatusCondition(&network.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonReady, ObservedGeneration: network.Generation,
	})
	w.must(w.client.Status().Update(w.Context(), network))
}

func (w *world) create(objects ...client.Object) {
	w.Helper()
	for _, object := range objects {
		if err := w.client.Create(w.Context(), object); err != nil && !apierrors.IsAlreadyExists(err) {
			w.Fatal(err)
		}
	}
}

// kubeconfig reaches the API server as the agent's service account.
func (w *world) kubeconfig() string {
	gated := rest.CopyConfig(w.config)
	gated.Host = "https://" + w.gate.address
	path := filepath.Join(w.dir, "kubeconfig")
	w.must(apiserver.WriteKubeconfig(path, gated, account))
	return path
}

// startAgent runs the agent and waits until it is ready.
func (w *world) startAgent() {
	w.Helper()
	w.launchAgent()
	w.awaitReady()
}

// launchAgent runs the agent, with flags beside those of the DaemonSet.
func (w *world) launchAgent(flags ...string) {
	w.Helper()
	w.health, w.metrics = program.FreeAddress(w.T), program.FreeAddress(w.T)
	w.process = exec.Command(w.agent, append(flags,
		"--kubeconfig="+w.kubeconfig(), "--node-name="+nodeName, "--state-dir="+w.state, "--map-file="+w.mapFile,
		"--cni-bin-dir="+w.bin, "--cni-conf-dir="+w.conf, "--plugin-source="+filepath.Join(w.dir, "netplane"),
		"--host-proc-sys=/proc/sys", "--health-probe-bind-address="+w.health, "--metrics-bind-address="+w.metrics, "--v=2")...)
	w.process.Stdout, w.process.Stderr = w.log, w.log
	w.must(w.process.Start())
	ended, process := make(chan error, 1), w.process
	w.ended = ended
	go func() { ended <- process.Wait() }()
	w.Cleanup(func() {
		if process.ProcessState == nil {
			_ = process.Process.Kill()
			<-ended //nolint:errcheck // it was killed: how it ended says nothing
		}
		if w.Failed() && process == w.process {
			w.Logf("the agent's log:\n%s", w.log)
		}
	})
}

func (w *world) awaitReady() {
	w.Helper()
	w.await("the agent to be ready", func() error {
		select {
		case err := <-w.ended:
			w.ended <- err
			w.Fatalf("the agent ended: %v", err)
		default:
		}
		_, err := program.Fetch(w.health, "/readyz")
		return err
	})
}

// await wants ok to return no error in time.
func (w *world) await(what string, ok func() error) {
	w.Helper()
	for deadline := time.Now().Add(eventually); ; time.Sleep(50 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("%s: not within %s: %v", what, eventually, err)
		}
	}
}

func (w *world) nodeNetwork() *v1alpha1.NodeNetwork {
	w.Helper()
	var out v1alpha1.NodeNetwork
	w.must(w.client.Get(w.Context(), types.NamespacedName{Name: nodeName}, &out))
	return &out
}

// sandbox is a pod as the runtime has it.
type sandbox struct {
	id, netns string
	pod       *corev1.Pod
	cni       *libcni.CNIConfig
	list      *libcni.NetworkConfigList
	runtime   *libcni.RuntimeConf
}

// newSandbox makes a pod in the API and a namespace on the node.
func (w *world) newSandbox(name, networks string) *sandbox {
	w.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{{Name: "c", Image: "web"}}, ServiceAccountName: "default"},
	}
	if networks != "" {
		pod.Annotations[v1alpha1.AnnotationNetworks] = networks
	}
	w.create(pod)
	s := &sandbox{id: "sandbox-of-" + name, netns: isolated.NewNamespace(w.T), pod: pod}
	s.cni = libcni.NewCNIConfigWithCacheDir([]string{w.bin}, filepath.Join(w.dir, "cache"), nil)
	files, err := libcni.ConfFiles(w.conf, []string{".conflist"})
	w.must(err)
	s.list, err = libcni.ConfListFromFile(files[0])
	w.must(err)
	s.runtime = &libcni.RuntimeConf{
		ContainerID: s.id, NetNS: s.netns, IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", string(pod.UID)}, {"K8S_POD_INFRA_CONTAINER_ID", s.id}},
		CapabilityArgs: map[string]any{"io.kubernetes.cri.pod-annotations": pod.Annotations},
	}
	return s
}

func (w *world) add(s *sandbox) (*cnitypes.Result, error) {
	w.Helper()
	raw, err := s.cni.AddNetworkList(w.Context(), s.list, s.runtime)
	if err != nil {
		return nil, err
	}
	return cnitypes.GetResult(raw)
}

func (w *world) del(s *sandbox) error {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.Context()), eventually)
	defer cancel()
	return s.cni.DelNetworkList(ctx, s.list, s.runtime)
}

// interfaces lists a pod's links and addresses, as text.
func (w *world) interfaces(s *sandbox) string {
	w.Helper()
	ns, err := netns.GetFromPath(s.netns)
	w.must(err)
	defer func() { _ = ns.Close() }()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	w.must(err)
	defer handle.Close()
	links, err := handle.LinkList()
	w.must(err)
	var out []string
	for _, l := range links {
		if l.Attrs().Name == "lo" {
			continue
		}
		text := l.Attrs().Name + " " + l.Type()
		addrs, err := handle.AddrList(l, netlink.FAMILY_ALL)
		w.must(err)
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				text += " " + a.IPNet.String()
			}
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func (w *world) awaitStatus(s *sandbox, ips []string) {
	w.Helper()
	w.await("network-status", func() error {
		var pod corev1.Pod
		if err := w.client.Get(w.Context(), client.ObjectKeyFromObject(s.pod), &pod); err != nil {
			return err
		}
		attachments, err := podnetworks.ParseStatus(pod.Annotations[v1alpha1.AnnotationNetworkStatus])
		if err != nil {
			return err
		}
		if len(attachments) != 1 || attachments[0].Name != "management" || attachments[0].Interface != "eth0" || !attachments[0].Default ||
			strings.Join(attachments[0].IPs, ",") != strings.Join(ips, ",") || pod.Annotations[v1alpha1.AnnotationNetworkStatusSandbox] != s.id {
			return fmt.Errorf("annotations %v", pod.Annotations)
		}
		return nil
	})
}

// journal returns the addresses that the journal's leases are of.
func journal(t *testing.T, state string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(state, "addresses.journal"))
	if err != nil {
		t.Fatal(err)
	}
	live := map[string]bool{}
	for line := range strings.Lines(string(raw)) {
		_, text, _ := strings.Cut(line, " ")
		var record struct {
			Op     string `json:"op"`
			Leases []struct {
				Address string `json:"address"`
			} `json:"leases"`
		}
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatalf("journal line %q: %v", line, err)
		}
		for _, lease := range record.Leases {
			if record.Op == "lease" {
				live[lease.Address] = true
			} else {
				delete(live, lease.Address)
			}
		}
	}
	var out []string
	for address := range live {
		out = append(out, address)
	}
	return strings.Join(out, " ")
}

func residentMemory(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "unknown"
}

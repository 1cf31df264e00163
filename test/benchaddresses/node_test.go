// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package benchaddresses

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/cni/wire"
)

const (
	root = "../.."
	// defaultConf is the node's CNI configuration before netplane's.
	defaultConf = `{"cniVersion": "1.0.0", "name": "default", "plugins": [{"type": "none"}]}`
	// defaultResult is what that configuration would have given a pod.
	defaultResult = `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.244.1.9/24","interface":0}]}`
)

// programs are the agent and the CNI binary.
type programs struct{ agent, plugin string }

func buildPrograms(b *testing.B) programs {
	b.Helper()
	dir := b.TempDir()
	out := programs{agent: filepath.Join(dir, "netplane-agent"), plugin: filepath.Join(dir, "netplane")}
	for target, from := range map[string]string{out.agent: "./cni/agent", out.plugin: "./cni/plugin"} {
		build := exec.CommandContext(b.Context(), "go", "build", "-ldflags", "-s -w", "-o", target, from)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			b.Fatalf("building %s: %v\n%s", from, err, text)
		}
	}
	return out
}

// node is a network namespace with NICs, in which the agent runs as it does in
// its DaemonSet.
type node struct {
	name, dir, state, ns string
	process              *exec.Cmd
}

// startNode makes a node with so many NICs, eth1 and up, that back phy-net1
// and up, and runs its agent until it serves.
func (c *cluster) startNode(b *testing.B, built programs, name string, nics int) *node {
	b.Helper()
	n := &node{name: name, dir: b.TempDir(), ns: newNamespace(b)}
	state, err := os.MkdirTemp("", "np") // the socket's path must be short
	must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(state) })
	n.state = state
	for _, folder := range []string{"bin", "net.d"} {
		must(b, os.Mkdir(filepath.Join(n.dir, folder), 0o755))
	}
	must(b, os.WriteFile(filepath.Join(n.dir, "net.d", "10-default.conflist"), []byte(defaultConf), 0o600))
	var providers []string
	for i := 1; i <= nics; i++ {
		providers = append(providers, fmt.Sprintf("{alias: phy-net%d, ref_nic: eth%d}", i, i))
	}
	must(b, os.WriteFile(filepath.Join(n.dir, "map.yaml"), []byte("provider: ["+strings.Join(providers, ", ")+"]"), 0o600))
	must(b, furnishNode(n.ns, nics))
	must(b, c.Create(b.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	server := c.reachFrom(b, n.ns)
	log, err := os.Create(filepath.Join(n.dir, "agent.log"))
	must(b, err)
	defer func() { _ = log.Close() }()
	n.process = exec.Command(built.agent,
		"--kubeconfig="+c.kubeconfig(b, n, server), "--node-name="+name, "--state-dir="+state, "--map-file="+filepath.Join(n.dir, "map.yaml"),
		"--cni-bin-dir="+filepath.Join(n.dir, "bin"), "--cni-conf-dir="+filepath.Join(n.dir, "net.d"), "--plugin-source="+built.plugin,
		"--host-proc-sys=/proc/sys")
	n.process.Stdout, n.process.Stderr = log, log
	must(b, inNamespace(n.ns, n.process.Start))
	ended := make(chan error, 1)
	go func() { ended <- n.process.Wait() }()
	b.Cleanup(func() {
		_ = n.process.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended: //nolint:errcheck // it was told to end
		case <-time.After(time.Minute):
			_ = n.process.Process.Kill()
		}
		if text, err := os.ReadFile(log.Name()); err == nil && b.Failed() {
			b.Logf("the end of the log of %s:\n%s", name, text[max(0, len(text)-5000):])
		}
	})
	await(b, "the agent of "+name+" to serve", func() error {
		_, err := os.Stat(filepath.Join(n.dir, "net.d", "00-netplane.conflist"))
		return err
	})
	return n
}

func furnishNode(path string, nics int) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	up := []string{"lo"}
	for i := 1; i <= nics; i++ {
		nic := fmt.Sprintf("eth%d", i)
		if err := handle.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nic, MTU: 1500, TxQLen: -1}, PeerName: "port-" + nic}); err != nil {
			return err
		}
		up = append(up, "port-"+nic, nic)
	}
	for _, name := range up {
		link, err := handle.LinkByName(name)
		if err == nil {
			err = handle.LinkSetUp(link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// reachFrom lets a namespace reach the API server, and returns where.
func (c *cluster) reachFrom(b *testing.B, ns string) string {
	b.Helper()
	server, err := url.Parse(c.config.Host)
	must(b, err)
	var listener net.Listener
	must(b, inNamespace(ns, func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}))
	b.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go forward(client, server.Host)
		}
	}()
	return listener.Addr().String()
}

func forward(client net.Conn, address string) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1])
			done <- struct{}{}
		}()
	}
	<-done
}

// kubeconfig reaches the API server as the node's agent.
func (c *cluster) kubeconfig(b *testing.B, n *node, server string) string {
	b.Helper()
	const name = "bench"
	as := c.asAgent(n.name).Impersonate
	out := clientcmdapi.NewConfig()
	out.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + server, CertificateAuthorityData: c.config.CAData}
	out.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: c.config.CertData, ClientKeyData: c.config.KeyData,
		Impersonate: as.UserName, ImpersonateGroups: as.Groups, ImpersonateUserExtra: as.Extra,
	}
	out.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	out.CurrentContext = name
	path := filepath.Join(n.dir, "kubeconfig")
	must(b, clientcmd.WriteToFile(*out, path))
	return path
}

// newPod makes a pod and binds it to the node, as the scheduler does.
func (c *cluster) newPod(ctx context.Context, n *node, name, networks string) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{v1alpha1.AnnotationNetworks: networks}},
		Spec: corev1.PodSpec{
			SchedulerName: "netplane-scheduler", ServiceAccountName: "default",
			Containers: []corev1.Container{{Name: "c", Image: "web"}},
		},
	}
	if err := c.Create(ctx, pod); err != nil {
		return nil, err
	}
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: n.name}}
	return pod, c.SubResource("binding").Create(ctx, pod, binding)
}

// add is the CNI command ADD, as the binary passes it on.
func (n *node) add(ctx context.Context, pod *corev1.Pod, netnsPath string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	connection, err := wire.Dial(ctx, filepath.Join(n.state, "agent.sock"))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	sandbox := wire.Sandbox{ContainerID: "sandbox-of-" + pod.Name, NetNS: netnsPath, PodNamespace: pod.Namespace, PodName: pod.Name, PodUID: string(pod.UID)}
	if _, err := connection.Call(ctx, wire.Request{Op: wire.OpPrepare, Sandbox: sandbox, Networks: pod.Annotations[v1alpha1.AnnotationNetworks]}); err != nil {
		return fmt.Errorf("preparing %s: %w", pod.Name, err)
	}
	_, err = connection.Call(ctx, wire.Request{Op: wire.OpCommit, Sandbox: sandbox, Default: &wire.DefaultNetwork{Name: "default", Result: json.RawMessage(defaultResult)}})
	if err != nil {
		return fmt.Errorf("attaching %s: %w", pod.Name, err)
	}
	return nil
}

// del is the CNI command DEL.
func (n *node) del(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	connection, err := wire.Dial(ctx, filepath.Join(n.state, "agent.sock"))
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	_, err = connection.Call(ctx, wire.Request{Op: wire.OpDel, Sandbox: wire.Sandbox{ContainerID: "sandbox-of-" + pod.Name}})
	return err
}

// newNamespace makes a network namespace and returns its path.
func newNamespace(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "netns")
	must(b, os.WriteFile(path, nil, 0o600))
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		made <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}()
	must(b, <-made)
	b.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func inNamespace(path string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = errors.Join(netns.Set(ns), ns.Close())
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}

// memory returns a line of /proc/<pid>/status, in MiB.
func (n *node) memory(b *testing.B, line string) float64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.process.Process.Pid))
	must(b, err)
	_, rest, found := strings.Cut(string(raw), line+":")
	if !found {
		b.Fatalf("no %s in the status of the agent", line)
	}
	var kib float64
	_, err = fmt.Sscan(rest, &kib)
	must(b, err)
	return kib / 1024
}

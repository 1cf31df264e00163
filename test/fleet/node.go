// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
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

	"github.com/netplane/netplane/test/isolated"
)

// defaultConf is a node's CNI configuration before netplane's.
const defaultConf = `{"cniVersion": "1.0.0", "name": "default", "plugins": [{"type": "none"}]}`

// metricsAddress is where an agent listens, in its node's namespace.
const metricsAddress = "127.0.0.1:10272"

// Programs are the files of the agent and the CNI binary, built as shipped.
type Programs struct{ Agent, Plugin string }

// BuildPrograms builds both.
func BuildPrograms(b *testing.B) Programs {
	b.Helper()
	dir := b.TempDir()
	out := Programs{Agent: filepath.Join(dir, "netplane-agent"), Plugin: filepath.Join(dir, "netplane")}
	for target, from := range map[string]string{out.Agent: "./cni/agent", out.Plugin: "./cni/plugin"} {
		build := exec.CommandContext(b.Context(), "go", "build", "-ldflags", "-s -w", "-o", target, from)
		build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			b.Fatalf("building %s: %v\n%s", from, err, text)
		}
	}
	return out
}

// Node is a network namespace with NICs, in which the agent runs as it does in
// its DaemonSet.
type Node struct {
	Name           string
	dir, state, ns string
	process        *exec.Cmd
}

// StartNode makes a node with so many NICs, eth1 and up, that back phy-net1
// and up, and runs its agent until it serves.
func (c *Cluster) StartNode(b *testing.B, built Programs, name string, nics int) *Node {
	b.Helper()
	n := &Node{Name: name, dir: b.TempDir(), ns: isolated.NewNamespace(b)}
	state, err := os.MkdirTemp("", "np") // the socket's path must be short
	Must(b, err)
	b.Cleanup(func() { _ = os.RemoveAll(state) })
	n.state = state
	for _, folder := range []string{"bin", "net.d"} {
		Must(b, os.Mkdir(filepath.Join(n.dir, folder), 0o755))
	}
	Must(b, os.WriteFile(filepath.Join(n.dir, "net.d", "10-default.conflist"), []byte(defaultConf), 0o600))
	var providers []string
	for i := 1; i <= nics; i++ {
		providers = append(providers, fmt.Sprintf("{alias: %s, ref_nic: eth%d}", physicalName(i), i))
	}
	Must(b, os.WriteFile(filepath.Join(n.dir, "map.yaml"), []byte("provider: ["+strings.Join(providers, ", ")+"]"), 0o600))
	Must(b, plugNICs(n.ns, nics))
	Must(b, c.Create(b.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	n.startAgent(b, built, c.kubeconfig(b, n, c.reachFrom(b, n.ns)))
	return n
}

func (n *Node) startAgent(b *testing.B, built Programs, kubeconfig string) {
	b.Helper()
	log, err := os.Create(filepath.Join(n.dir, "agent.log"))
	Must(b, err)
	defer func() { _ = log.Close() }()
	n.process = exec.Command(built.Agent,
		"--kubeconfig="+kubeconfig, "--node-name="+n.Name, "--state-dir="+n.state, "--map-file="+filepath.Join(n.dir, "map.yaml"),
		"--cni-bin-dir="+filepath.Join(n.dir, "bin"), "--cni-conf-dir="+filepath.Join(n.dir, "net.d"), "--plugin-source="+built.Plugin,
		"--host-proc-sys=/proc/sys", "--metrics-bind-address="+metricsAddress) // #nosec G204 -- the benchmark's own build
	n.process.Stdout, n.process.Stderr = log, log
	Must(b, isolated.In(n.ns, n.process.Start))
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
			b.Logf("the end of the log of %s:\n%s", n.Name, text[max(0, len(text)-5000):])
		}
	})
	Await(b, "the agent of "+n.Name+" to serve", func() error {
		_, err := os.Stat(filepath.Join(n.dir, "net.d", "00-netplane.conflist"))
		return err
	})
}

func plugNICs(path string, nics int) error {
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
func (c *Cluster) reachFrom(b *testing.B, ns string) string {
	b.Helper()
	server, err := url.Parse(c.Config.Host)
	Must(b, err)
	var listener net.Listener
	Must(b, isolated.In(ns, func() (err error) {
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
func (c *Cluster) kubeconfig(b *testing.B, n *Node, server string) string {
	b.Helper()
	const name = "bench"
	as := c.AsAgent(n.Name).Impersonate
	out := clientcmdapi.NewConfig()
	out.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + server, CertificateAuthorityData: c.Config.CAData}
	out.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: c.Config.CertData, ClientKeyData: c.Config.KeyData,
		Impersonate: as.UserName, ImpersonateGroups: as.Groups, ImpersonateUserExtra: as.Extra,
	}
	out.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	out.CurrentContext = name
	path := filepath.Join(n.dir, "kubeconfig")
	Must(b, clientcmd.WriteToFile(*out, path))
	return path
}

// Memory returns a line of the agent's /proc/<pid>/status, such as VmRSS, in MiB.
func (n *Node) Memory(b *testing.B, line string) float64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.process.Process.Pid))
	Must(b, err)
	_, rest, found := strings.Cut(string(raw), line+":")
	if !found {
		b.Fatalf("no %s in the status of the agent", line)
	}
	var kib float64
	_, err = fmt.Sscan(rest, &kib)
	Must(b, err)
	return kib / 1024
}

// Metric sums up the samples of one of the agent's metrics whose labels contain
// all texts.
func (n *Node) Metric(b *testing.B, name string, labels ...string) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (connection net.Conn, err error) {
		err = isolated.In(n.ns, func() (err error) {
			connection, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return connection, err
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+"/metrics", nil)
	Must(b, err)
	response, err := (&http.Client{Transport: transport}).Do(request)
	Must(b, err)
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	Must(b, err)
	if response.StatusCode != http.StatusOK {
		b.Fatalf("the agent's metrics: %s: %s", response.Status, raw)
	}
	return sum(b, string(raw), name, labels...)
}

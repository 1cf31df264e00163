// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/scheduler/app"
	"github.com/netplane/netplane/test/integration/apiserver"
	"github.com/netplane/netplane/test/integration/schedulerprocess"
)

// key names an object: its name, or its namespace and name.
func key(parts ...string) types.NamespacedName {
	if len(parts) == 1 {
		return types.NamespacedName{Name: parts[0]}
	}
	return types.NamespacedName{Namespace: parts[0], Name: parts[1]}
}

func TestMissingCRDsEndTheStartWithTheCure(t *testing.T) {
	config := apiserver.Start(t, apiserver.WithoutCRDs())
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, config, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// Nobody has given the service account rights here, and none are needed to be told.
	message := startMessage(t, 15*time.Second, file)
	for _, want := range []string{
		"networks.netplane.io (v1alpha1), nodenetworks.netplane.io (v1alpha1), ipblocks.netplane.io (v1alpha1), ipclaims.netplane.io (v1alpha1)",
		"kubectl apply -k manifests/base",
	} {
		if !strings.Contains(message, want) {
			t.Errorf("the scheduler ended with %q, which does not say %q", message, want)
		}
	}
}

func TestWrongConfigurationEndsTheStart(t *testing.T) {
	shipped, err := os.ReadFile(filepath.Join(manifests, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	// A connection that leads nowhere: what is wrong must be said before it is used.
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte("{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}"), 0o600); err != nil {
		t.Fatal(err)
	}
	reachable := strings.Replace(string(shipped), "clientConnection:", "clientConnection:\n  kubeconfig: "+kubeconfig, 1)
	for name, test := range map[string]struct{ old, new, want string }{
		"NetworkFit is enabled nowhere": {"- name: NetworkFit", "- name: NodePorts", "no profile enables the plugin NetworkFit: start with --config"},
		"the API server is away":        {"", "", "asking the API server whether netplane's CustomResourceDefinitions are installed"},
	} {
		t.Run(name, func(t *testing.T) {
			text := reachable
			if test.old != "" {
				text = strings.ReplaceAll(text, test.old, test.new)
				text, _, _ = strings.Cut(text, "  pluginConfig:")
			}
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if message := startMessage(t, 15*time.Second, file); !strings.Contains(message, test.want) {
				t.Errorf("the scheduler ended with %q, which does not say %q", message, test.want)
			}
		})
	}
}

// A configuration that serves default-scheduler, too, takes the stock
// scheduler's place: its profiles share one set of caches.
func TestTwoProfilesShareTheCaches(t *testing.T) {
	file, err := schedulerprocess.WriteConfig(schedulerprocess.Shipped, connection, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	both := append(raw, []byte("- schedulerName: default-scheduler\n  plugins: {multiPoint: {enabled: [{name: NetworkFit}]}}\n")...)
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	opts := options.NewOptions()
	opts.ConfigFile = file
	opts.SecureServing.BindPort = 0
	_, sched, err := app.Setup(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default-scheduler", v1alpha1.DefaultSchedulerName} {
		if sched.Profiles[name] == nil {
			t.Errorf("profile %s is not served", name)
		}
	}
}

// startMessage sets a scheduler up and returns the error that it ends with.
// The command itself applies its logging flags, which a process may do once.
func startMessage(t *testing.T, within time.Duration, config string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	opts := options.NewOptions()
	opts.ConfigFile = config
	opts.SecureServing.BindPort = 0
	_, _, err := app.Setup(ctx, opts)
	if ctx.Err() != nil {
		t.Fatalf("the scheduler had not ended after %s", within)
	}
	if err == nil {
		t.Fatal("the scheduler would have started")
	}
	return err.Error()
}

// The other tests run without leader election, so its rights are asked for here.
func TestTheServiceAccountMayLead(t *testing.T) {
	const lease = "netplane-scheduler"
	for verb, want := range map[string]bool{"create": true, "get": true, "update": true, "delete": false} {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + v1alpha1.SystemNamespace + ":netplane-scheduler",
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: v1alpha1.SystemNamespace, Group: "coordination.k8s.io", Resource: "leases", Verb: verb, Name: lease,
			},
		}}
		if verb == "create" {
			review.Spec.ResourceAttributes.Name = ""
		}
		if err := api.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != want {
			t.Errorf("may the scheduler %s its lease: %v, want %v", verb, review.Status.Allowed, want)
		}
	}
}

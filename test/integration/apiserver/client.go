// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
)

// NewClient makes a client that knows Kubernetes' kinds and netplane's, and
// waits for nothing but answers: a test is no load to be throttled.
func NewClient(config *rest.Config) (client.Client, error) {
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), v1alpha1.AddToScheme(types)); err != nil {
		return nil, fmt.Errorf("collecting the kinds: %w", err)
	}
	quick := rest.CopyConfig(config)
	quick.QPS = -1
	made, err := client.New(quick, client.Options{Scheme: types})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return made, nil
}

// Manifests are those of manifests/base, from a test's own folder.
const Manifests = "../../../manifests/base"

// Apply creates the objects of manifests, in the order of the files. None of
// them may be there already.
func Apply(ctx context.Context, api client.Client, files ...string) error {
	for _, file := range files {
		if err := applyFile(ctx, api, file); err != nil {
			return fmt.Errorf("applying %s: %w", file, err)
		}
	}
	return nil
}

func applyFile(ctx context.Context, api client.Client, file string) error {
	raw, err := os.ReadFile(file) // #nosec G304 -- a manifest of this repository
	if err != nil {
		return err
	}
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(raw), 4096)
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading an object: %w", err)
		}
		if len(object.Object) == 0 {
			continue
		}
		if err := api.Create(ctx, &object); err != nil {
			return fmt.Errorf("creating %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
}

// WriteKubeconfig writes a file that leads to the API server with the rights
// of one of netplane's service accounts ("netplane-scheduler") and no others, or
// with an administrator's if account is empty.
func WriteKubeconfig(file string, config *rest.Config, account string) error {
	const name = "test"
	user := &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	if account != "" {
		user.Impersonate = "system:serviceaccount:" + v1alpha1.SystemNamespace + ":" + account
		user.ImpersonateGroups = []string{"system:serviceaccounts", "system:serviceaccounts:" + v1alpha1.SystemNamespace, "system:authenticated"}
	}
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: user},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	}, file)
	if err != nil {
		return fmt.Errorf("writing a kubeconfig for %s: %w", account, err)
	}
	return nil
}

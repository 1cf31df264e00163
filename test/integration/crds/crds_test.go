// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crds holds every validation rule of netplane's CRDs to what a real
// API server does with it: each rule has an object that it refuses, and the
// message is read; each kind has objects that nothing may refuse.
package crds

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/netplane/netplane/api/v1alpha1"
	"github.com/netplane/netplane/test/integration/apiserver"
)

// environment is shared by the tests of this package: one API server.
type environment struct {
	client client.Client

	mu sync.Mutex
	// refusals are all messages seen, for TestEveryRuleIsTried.
	refusals []string
}

var env environment

func TestMain(m *testing.M) {
	os.Exit(apiserver.Main(m, func(config *rest.Config) { env.client = newClient(config) }))
}

func newClient(config *rest.Config) client.Client {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		panic(err)
	}
	return c
}

// check compares the error of a write with the message wanted; none means
// that the write must succeed.
func check(t *testing.T, err error, want string) {
	t.Helper()
	if err != nil {
		env.mu.Lock()
		env.refusals = append(env.refusals, err.Error())
		env.mu.Unlock()
	}
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("accepted, want a refusal that says %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("refused with %q, want a message with %q", err, want)
	}
}

// tryCreate creates obj and removes it again if it got through.
func tryCreate(t *testing.T, obj client.Object, want string) {
	t.Helper()
	err := env.client.Create(t.Context(), obj)
	if err == nil {
		t.Cleanup(func() { remove(t, obj) })
	}
	check(t, err, want)
}

// tryUpdate creates before and then writes after in its place.
func tryUpdate(t *testing.T, before, after client.Object, want string) {
	t.Helper()
	if err := env.client.Create(t.Context(), before); err != nil {
		t.Fatalf("creating the object to update: %v", err)
	}
	t.Cleanup(func() { remove(t, before) })
	after.SetResourceVersion(before.GetResourceVersion())
	check(t, env.client.Update(t.Context(), after), want)
}

func remove(t *testing.T, obj client.Object) {
	if err := env.client.Delete(context.WithoutCancel(t.Context()), obj); client.IgnoreNotFound(err) != nil {
		t.Errorf("removing %s: %v", obj.GetName(), err)
	}
}

// testEveryRuleIsTried looks for each rule's message among the refusals so far.
func testEveryRuleIsTried(t *testing.T) {
	env.mu.Lock()
	refusals := strings.Join(env.refusals, "\n")
	env.mu.Unlock()
	if refusals == "" {
		t.Skip("the tests with the refusals were not selected")
	}
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := env.client.List(t.Context(), &crds); err != nil {
		t.Fatal(err)
	}
	rules := 0
	for i := range crds.Items {
		schema := crds.Items[i].Spec.Versions[0].Schema.OpenAPIV3Schema
		for _, message := range messages(schema) {
			rules++
			if !strings.Contains(refusals, message) {
				t.Errorf("%s: no test is refused with %q", crds.Items[i].Spec.Names.Kind, message)
			}
		}
	}
	if rules < 20 {
		t.Errorf("only %d rules were found in the CRDs: are they installed?", rules)
	}
}

// messages collects those of all rules in a schema, each once.
func messages(schema *apiextensionsv1.JSONSchemaProps) []string {
	var out []string
	for _, rule := range schema.XValidations {
		out = append(out, rule.Message)
	}
	for name := range schema.Properties {
		child := schema.Properties[name]
		out = append(out, messages(&child)...)
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		out = append(out, messages(schema.Items.Schema)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// label makes names that are as long as asked for.
func label(n int) string { return strings.Repeat("a", n) }

func caseName(i int) string { return fmt.Sprintf("net-%d", i) }

// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"os"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Whoever reads a reason in kubectl describe finds its cure in the troubleshooting guide.
func TestEveryReasonHasACure(t *testing.T) {
	text, err := os.ReadFile("../../docs/user/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := func(reason string) {
		t.Helper()
		if !strings.Contains(string(text), "| `"+reason) {
			t.Errorf("docs/user/troubleshooting.md has no row for %q", reason)
		}
	}
	documented(reasonNoAgent)
	ofNetwork := reflect.ValueOf(newReasons("x"))
	for i := range ofNetwork.NumField() {
		documented(ofNetwork.Field(i).String())
	}
	for reason, test := range map[string]struct {
		asked   string
		objects []any
	}{
		`network "x" does not exist`:                            {"x", nil},
		`network "x" is not ready: `:                            {"x", []any{makeNetwork("x", setReady(metav1.ConditionFalse, v1alpha1.ReasonNoNode, ""))}},
		`network "x" is being deleted`:                          {"x", []any{makeNetwork("x", deletingNetwork)}},
		`network "x" is not usable: `:                           {"x", []any{makeNetwork("x", func(n *v1alpha1.Network) { n.Spec.BlockSize = 12 })}},
		`network "x" does not admit pods of namespace "tenant"`: {"x", []any{makeNetwork("x", forTeamA)}},
		"annotation " + v1alpha1.AnnotationNetworks + ": ":      {"x,x@", nil},
		`network "x": interfaces of plugin `:                    {"x@eth0", []any{makeNetwork("x", ipvlan)}},
	} {
		_, status := newPlugin(t, test.objects...).PreFilter(t.Context(), newCycleState(), makePod("p", test.asked), nil)
		if !strings.HasPrefix(status.Message(), reason) {
			t.Errorf("PreFilter answers %q, want %q", status.Message(), reason)
		}
		documented(strings.Replace(reason, "tenant", "n", 1))
	}
}

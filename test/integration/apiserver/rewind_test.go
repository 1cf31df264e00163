// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/kubernetes"
)

func TestRewindForgetsWhatCameAfterTheBackup(t *testing.T) {
	s, err := launchServer(nil)
	if errors.Is(err, ErrNoAssets) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	nodes := kubernetes.NewForConfigOrDie(s.Config).CoreV1().Nodes()
	create := func(name string) {
		t.Helper()
		if _, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	backup := filepath.Join(t.TempDir(), "backup")
	create("before")
	if err := s.Backup(backup); err != nil {
		t.Fatal(err)
	}
	create("after")
	if err := s.Age(100); err != nil {
		t.Fatal(err)
	}
	aged, err := nodes.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rewind(backup); err != nil {
		t.Fatal(err)
	}
	rewound, err := nodes.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if order, err := resourceversion.CompareResourceVersion(rewound.ResourceVersion, aged.ResourceVersion); err != nil || order >= 0 {
		t.Errorf("versions went from %s to %s (%v)", aged.ResourceVersion, rewound.ResourceVersion, err)
	}
	if _, err := nodes.Get(t.Context(), "before", metav1.GetOptions{}); err != nil {
		t.Errorf("what came before the backup: %v", err)
	}
	if _, err := nodes.Get(t.Context(), "after", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what came after the backup: %v", err)
	}
}

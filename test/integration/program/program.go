// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

// Package program is for the integration tests that run netplane's programs as
// they are built: it builds them and asks their own servers.
package program

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"testing"
)

// root is the repository, from a test's own folder.
const root = "../../.."

// Build compiles a package, named as in "./cni/agent", into the file target.
// The result is static, as what is shipped.
func Build(t testing.TB, target, pkg string) {
	t.Helper()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", target, pkg)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", pkg, err, out)
	}
}

// FreeAddress is a host and port on which nobody listens.
func FreeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// Fetch reads one page of a program's server, which listens at address. It is
// an error if the answer is not 200.
func Fetch(address, path string) (string, error) {
	response, err := http.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

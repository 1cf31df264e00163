// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// target is what one SRV record leads to: a port of a host, and the addresses
// that the same answer gives for the host.
type target struct {
	port      uint16
	host      string
	addresses []string
}

func (t target) String() string {
	return fmt.Sprintf("%s:%d at %v", t.host, t.port, sorted(t.addresses))
}

// awaitTargets waits until the SRV records of a name lead to exactly these.
func awaitTargets(t *testing.T, b box, name string, want ...target) {
	t.Helper()
	server := nameserver(t)
	eventually(t, 45*time.Second, "SRV of "+name, func() error {
		message, err := b.query(t, server, name, typeSRV)
		if err != nil {
			return err
		}
		got, err := parseTargets(message)
		if err != nil {
			return fmt.Errorf("%w: %x", err, message)
		}
		if got, want := texts(got), texts(want); !slices.Equal(got, want) {
			return fmt.Errorf("it answers\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return nil
	})
}

func texts(all []target) []string {
	var out []string
	for _, one := range all {
		out = append(out, one.String())
	}
	return sorted(out)
}

// nameserver is the address that pods ask.
func nameserver(t *testing.T) string {
	t.Helper()
	var svc corev1.Service
	if err := env.client.Get(t.Context(), client.ObjectKey{Namespace: "kube-system", Name: "kube-dns"}, &svc); err != nil {
		t.Fatal(err)
	}
	return svc.Spec.ClusterIP
}

// Types of records (RFC 1035, 3596, 2782, 6891).
const (
	typeA    = 1
	typeAAAA = 28
	typeSRV  = 33
	typeOPT  = 41
)

// queryClient sends a query, and prints the answer, both in hexadecimal.
const queryClient = `socket(S, AF_INET, SOCK_DGRAM, 0); connect(S, pack_sockaddr_in(53, inet_aton($ARGV[0]))) or die $!; alarm 3;
defined send(S, pack("H*", $ARGV[1]), 0) or die $!; defined recv(S, $_, 65535, 0) or die $!; print unpack("H*", $_)`

// query asks a nameserver from the pod, and returns its whole message: busybox's
// nslookup does not show the additional section, in which the addresses are.
func (b box) query(t *testing.T, server, name string, kind uint16) ([]byte, error) {
	t.Helper()
	message := []byte{0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1} // recursion desired, a question, an additional record
	for label := range strings.SplitSeq(name, ".") {
		message = append(append(message, byte(len(label))), label...)
	}
	message = binary.BigEndian.AppendUint16(append(message, 0), kind)
	// Class IN; then the room for an answer, or it is cut to 512 bytes.
	message = append(message, 0, 1, 0, 0, typeOPT, 16, 0, 0, 0, 0, 0, 0, 0)
	out, err := onNode(t.Context(), b.node, "", "nsenter", "--target", strconv.Itoa(b.pid), "--net",
		"perl", "-MSocket=:all", "-e", queryClient, server, hex.EncodeToString(message))
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(out)
}

var errCut = errors.New("the message ends within a record")

// parseTargets reads the SRV records of an answer, and the addresses beside them.
func parseTargets(message []byte) ([]target, error) {
	const header = 12
	if len(message) < header {
		return nil, errCut
	}
	if code := message[3] & 0xf; code != 0 {
		return nil, fmt.Errorf("the answer's code is %d", code)
	}
	count := func(at int) int { return int(binary.BigEndian.Uint16(message[at:])) }
	_, at, err := parseName(message, header)
	if err != nil {
		return nil, err
	}
	at += 4 // the question's type and class
	var out []target
	addresses := map[string][]string{}
	for range count(6) + count(8) + count(10) {
		owner, body, err := parseName(message, at)
		if err != nil {
			return nil, err
		}
		if len(message) < body+10 || len(message) < body+10+count(body+8) {
			return nil, errCut
		}
		data := message[body+10 : body+10+count(body+8)]
		switch count(body) {
		case typeA, typeAAAA:
			if addr, ok := netip.AddrFromSlice(data); ok {
				addresses[owner] = append(addresses[owner], addr.String())
			}
		case typeSRV:
			host, _, err := parseName(message, body+10+6)
			if err != nil {
				return nil, err
			}
			out = append(out, target{port: binary.BigEndian.Uint16(data[4:]), host: host})
		}
		at = body + 10 + len(data)
	}
	for i := range out {
		out[i].addresses = addresses[out[i].host]
	}
	return out, nil
}

// parseName reads a name, which may go on elsewhere (RFC 1035, 4.1.4), and
// returns what comes after it.
func parseName(message []byte, at int) (name string, next int, err error) {
	var labels []string
	for range 128 { // a pointer may lead in a circle
		if at >= len(message) {
			return "", 0, errCut
		}
		length := int(message[at])
		switch {
		case length == 0:
			return strings.Join(labels, "."), max(next, at+1), nil
		case at+1+length&^0xc0 > len(message) || at+2 > len(message):
			return "", 0, errCut
		case length&0xc0 == 0xc0:
			if next == 0 {
				next = at + 2
			}
			at = int(binary.BigEndian.Uint16(message[at:])) & 0x3fff
		default:
			labels = append(labels, string(message[at+1:at+1+length]))
			at += 1 + length
		}
	}
	return "", 0, errors.New("a name without end")
}

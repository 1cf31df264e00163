// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"

	"github.com/netplane/netplane/api/podnetworks"
)

// change is what makes the interfaces of a running pod those that its
// annotation asks for now. Removals come first: an address or a name that one
// gives up may be the next one's.
type change struct {
	remove []string // names of interfaces
	add    []podnetworks.Request
	// refused says what cannot change while the pod runs, whatever becomes of
	// node and networks. The interfaces that it names stay as they are.
	refused []string
}

func (c *change) empty() bool { return len(c.remove) == 0 && len(c.add) == 0 }

// planChange compares what the interfaces were made for with what is asked for
// now. An item that differs in anything is another interface of the same name.
// Foreign are the names of the interfaces that other plugins have made.
func planChange(have, asked []podnetworks.Request, foreign ...string) change {
	var out change
	for i := range have {
		h := &have[i]
		at := slices.IndexFunc(asked, func(r podnetworks.Request) bool { return r.IfName == h.IfName })
		why := fixedWithPod(h)
		if slices.Contains(foreign, h.IfName) {
			why = madeWithPod
		}
		switch {
		case !ofNetwork(h):
			if at >= 0 {
				out.refused = append(out.refused, fmt.Sprintf("interface %s on network %q is not added: the pod has an interface of that name for %s", asked[at].IfName, asked[at].Name, h.Name))
			}
		case at >= 0 && sameRequest(h, &asked[at]):
			continue
		case why != "":
			out.refused = append(out.refused, fmt.Sprintf("interface %s on network %q stays as it is: %s", h.IfName, h.Name, why))
		case at >= 0 && fixedWithPod(&asked[at]) != "":
			out.refused = append(out.refused, fmt.Sprintf("interface %s stays on network %q: %s", h.IfName, h.Name, fixedWithPod(&asked[at])))
		default:
			out.remove = append(out.remove, h.IfName)
			if at >= 0 {
				out.add = append(out.add, asked[at])
			}
		}
	}
	for i := range asked {
		r := &asked[i]
		if slices.ContainsFunc(have, func(h podnetworks.Request) bool { return h.IfName == r.IfName }) {
			continue
		}
		if why := fixedWithPod(r); why != "" {
			out.refused = append(out.refused, fmt.Sprintf("interface %s on network %q is not added: %s", r.IfName, r.Name, why))
			continue
		}
		out.add = append(out.add, *r)
	}
	return out
}

// madeWithPod is why the interfaces of plugins that are not built in do not
// change: the CNI binary executes them, in ADD and DEL.
const madeWithPod = "a plugin that is not built in makes its interface together with the pod; make the pod anew"

// fixedWithPod says why an interface comes and goes with its pod only.
func fixedWithPod(r *podnetworks.Request) string {
	switch {
	case r.IfName == podnetworks.PrimaryInterface:
		return "eth0 is made with the pod, whose IP it has; make the pod anew"
	case r.DefaultRoute:
		return "the pod's default route is set when the pod is made; make the pod anew"
	}
	return ""
}

// ofNetwork is false for what a pod was given by other annotations than ours:
// its name is no Network's, but has a namespace.
func ofNetwork(r *podnetworks.Request) bool { return !strings.Contains(r.Name, "/") }

// sameRequest tells whether two items ask for the same interface. Whether the
// annotation was written in the short form or in YAML, and how it spells a MAC
// address, does not matter.
func sameRequest(a, b *podnetworks.Request) bool {
	canonical := func(r podnetworks.Request) podnetworks.Request {
		if mac, err := net.ParseMAC(r.MAC); err == nil {
			r.MAC = mac.String()
		}
		r.IPs = slices.Sorted(slices.Values(r.IPs))
		if len(r.IPs) == 0 {
			r.IPs = nil
		}
		if len(r.Sysctls) == 0 {
			r.Sysctls = nil
		}
		return r
	}
	return reflect.DeepEqual(canonical(*a), canonical(*b))
}

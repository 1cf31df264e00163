// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package networkfit

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/netplane/netplane/api/addressing"
	"github.com/netplane/netplane/api/pluginconfig"
	"github.com/netplane/netplane/api/v1alpha1"
)

// network is a Network as it is stored, with what follows from it alone.
type network struct {
	*v1alpha1.Network

	edition  edition
	plan     *addressing.Plan // nil where a delegate brings its own addresses
	admits   labels.Selector  // of namespaces
	unusable string           // why no pod may be placed on it; empty if it is ready
	tight    bool             // its blocks are claimed on demand
	// sharesMAC: its interfaces have the NIC's MAC, so that pods may not ask
	// for all that they may elsewhere.
	sharesMAC bool
	// alone: a node has room for one of its interfaces, as that takes the NIC.
	alone   bool
	reasons reasons
}

// edition identifies a Network with its spec. A generation does not: after etcd
// was restored from a backup it comes again, and with another spec.
type edition struct {
	uid  types.UID
	spec [sha256.Size]byte
}

func editionOf(object *v1alpha1.Network) (edition, error) {
	text, err := json.Marshal(&object.Spec)
	if err != nil {
		return edition{}, fmt.Errorf("encoding the spec: %w", err)
	}
	return edition{object.UID, sha256.Sum256(text)}, nil
}

// reasons are what Filter answers. They are made once for a Network, because
// Filter runs for each node; the framework adds up equal texts to
// "3 node(s) had ...", so they name the network, but never a node or a number.
type reasons struct {
	noNIC, down, refused, noBlock, tooFew, full, tooFewNICs, noFreeNIC string
}

// reasonNoAgent is the one reason that has nothing to do with a network.
const reasonNoAgent = "node(s) had no ready netplane agent"

func newReasons(name string) reasons {
	return reasons{
		noNIC:   fmt.Sprintf("node(s) had no NIC for network %q", name),
		down:    fmt.Sprintf("node(s) had the NIC for network %q down", name),
		refused: fmt.Sprintf("node(s) refused network %q: ", name),
		noBlock: fmt.Sprintf("node(s) held no address block of network %q", name),
		tooFew:  fmt.Sprintf("node(s) had too few addresses in network %q for the pod", name),
		full:    fmt.Sprintf("node(s) had no free address in network %q", name),

		tooFewNICs: fmt.Sprintf("node(s) had too few NICs for network %q", name),
		noFreeNIC:  fmt.Sprintf("node(s) had no free NIC for network %q", name),
	}
}

func newNetwork(object *v1alpha1.Network) *network {
	n := &network{Network: object, admits: labels.Everything(), reasons: newReasons(object.Name)}
	n.unusable = n.prepare()
	if options, err := pluginconfig.Of(&object.Spec); err == nil {
		n.sharesMAC = pluginconfig.SharesMAC(object.Spec.Plugin, options)
		n.alone = options.Mode == pluginconfig.ModePassthru
	}
	n.tight = n.plan != nil && meta.IsStatusConditionTrue(object.Status.Conditions, v1alpha1.ConditionTight)
	return n
}

// prepare computes plan and admits, and says what stands against the network.
func (n *network) prepare() string {
	var err error
	if n.edition, err = editionOf(n.Network); err != nil {
		return fmt.Sprintf("network %q is not usable: %v", n.Name, err)
	}
	if n.DeletionTimestamp != nil {
		return fmt.Sprintf("network %q is being deleted", n.Name)
	}
	plan, err := addressing.NewPlan(n.Name, &n.Spec)
	if err != nil && !errors.Is(err, addressing.ErrNoSubnet) {
		return fmt.Sprintf("network %q is not usable: %v", n.Name, err)
	}
	n.plan = plan
	if n.Spec.NamespaceSelector != nil {
		if n.admits, err = metav1.LabelSelectorAsSelector(n.Spec.NamespaceSelector); err != nil {
			return fmt.Sprintf("network %q is not usable: namespaceSelector: %v", n.Name, err)
		}
	}
	ready := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		return fmt.Sprintf("network %q is not ready: netplane-controller has not looked at it yet", n.Name)
	case ready.Status != metav1.ConditionTrue:
		return fmt.Sprintf("network %q is not ready: %s: %s", n.Name, ready.Reason, ready.Message)
	}
	return ""
}

// refuses says why pods of a namespace may not be placed on the network; it
// is empty if they may. The namespace is nil if it is not known.
func (n *network) refuses(name string, namespace *v1.Namespace) string {
	if n.unusable != "" || n.admits.Empty() {
		return n.unusable
	}
	if namespace == nil || !n.admits.Matches(labels.Set(namespace.Labels)) {
		return fmt.Sprintf("network %q does not admit pods of namespace %q: its namespaceSelector does not match the namespace's labels", n.Name, name)
	}
	return ""
}

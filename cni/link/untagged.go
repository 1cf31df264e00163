// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// untaggedPriority is before all filters of bridges (NF_BR_PRI_NAT_DST_BRIDGED).
const untaggedPriority = -300

// KeepUntagged drops frames with a VLAN tag that come from pods, on all bridges: a
// bridge would pass them to its NIC, and so into any VLAN of the switch. The rules
// know a port of a pod by its name, so that one table serves all pods and stands
// when the next one comes (`nft list table bridge netplane`). It makes them anew
// or, if they are not wanted, removes them; wanted is asked when no port can be
// made in between.
func (l *Links) KeepUntagged(ctx context.Context, wanted func() bool) error {
	l.untagged.Lock()
	defer l.untagged.Unlock()
	return l.keepUntagged(ctx, wanted())
}

// untag is KeepUntagged for a port that is about to be made. It costs nothing once
// the rules stand.
func (l *Links) untag(ctx context.Context) error {
	l.untagged.Lock()
	defer l.untagged.Unlock()
	if l.keepsUntagged {
		return nil
	}
	return l.keepUntagged(ctx, true)
}

// keepUntagged writes the rules. A kernel without nftables for bridges goes without
// them: it is told once, as pods need their networks.
func (l *Links) keepUntagged(ctx context.Context, keep bool) error {
	if l.cannotUntag {
		return nil
	}
	l.keepsUntagged = false
	conn, err := l.nft()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyBridge, Name: nftTable}
	conn.AddTable(table) // so that it can be deleted
	conn.DelTable(table)
	if keep {
		conn.AddTable(table)
		priority := nftables.ChainPriority(untaggedPriority)
		chain := conn.AddChain(&nftables.Chain{
			Name: "untagged", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &priority,
		})
		for _, tag := range []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD} {
			rule := []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(hostEndPrefix)}, // all that begin so
			}
			rule = append(rule, ofType(tag)...)
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(rule, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
	}
	err = conn.Flush()
	switch {
	case lacksBridgeRules(err):
		l.cannotUntag = true
		if keep {
			klog.FromContext(ctx).Error(err, "Pods on bridges can send frames with VLAN tags: the kernel lacks nftables for bridges, load or build its module and restart the agent")
		}
		return nil
	case err != nil:
		return fmt.Errorf("writing nftables table bridge %s: %w", nftTable, err)
	}
	l.keepsUntagged = keep
	return nil
}

func lacksBridgeRules(err error) bool {
	for _, missing := range []error{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOENT} {
		if errors.Is(err, missing) {
			return true
		}
	}
	return false
}

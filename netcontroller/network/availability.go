// Copyright The netplane Authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/netplane/netplane/api/v1alpha1"
)

// Shares of a Network's capacity, in percent: from lowPercent in use on the
// addresses run low, until less than enoughPercent are. The distance keeps a
// Network whose pods come and go about the threshold from flapping.
const (
	lowPercent    = 90
	enoughPercent = 80
)

// availability tells whether addresses are left. Its messages have no counts in
// them: they would be a status write for every pod.
func availability(have []metav1.Condition, addresses v1alpha1.AddressCounts) metav1.Condition {
	threshold := int64(lowPercent)
	if old := meta.FindStatusCondition(have, v1alpha1.ConditionAddressesAvailable); old != nil && old.Reason != v1alpha1.ReasonAddressesLeft {
		threshold = enoughPercent
	}
	condition := metav1.Condition{Type: v1alpha1.ConditionAddressesAvailable, Status: metav1.ConditionTrue}
	switch {
	case addresses.Used >= addresses.Capacity:
		condition.Status = metav1.ConditionFalse
		condition.Reason = v1alpha1.ReasonAddressesExhausted
		condition.Message = "all of its addresses are in use, so that no further pod can be placed on it: grow it with additionalSubnets, or delete pods"
	case addresses.Used*100 >= addresses.Capacity*threshold:
		condition.Reason = v1alpha1.ReasonAddressesRunningLow
		condition.Message = "nearly all of its addresses are in use: grow it with additionalSubnets before none is left"
	default:
		condition.Reason = v1alpha1.ReasonAddressesLeft
		condition.Message = "there are addresses left"
	}
	return condition
}

// severity orders the reasons of AddressesAvailable, from good to bad.
func severity(condition *metav1.Condition) int {
	return slices.Index([]string{
		v1alpha1.ReasonAddressesLeft, v1alpha1.ReasonAddressesRunningLow, v1alpha1.ReasonAddressesExhausted,
	}, condition.Reason)
}

// pressing are both lists less what may be written with the counters. That more
// addresses became available may: where a Network is full, each pod that makes
// room for the next would be two writes, and every agent watches Networks.
func pressing(want, have []metav1.Condition) (wanted, had []metav1.Condition) {
	after := meta.FindStatusCondition(want, v1alpha1.ConditionAddressesAvailable)
	before := meta.FindStatusCondition(have, v1alpha1.ConditionAddressesAvailable)
	if after == nil || before == nil || severity(after) >= severity(before) {
		return want, have
	}
	return without(want, after.Type), without(have, after.Type)
}

func without(list []metav1.Condition, kind string) []metav1.Condition {
	return slices.DeleteFunc(slices.Clone(list), func(c metav1.Condition) bool { return c.Type == kind })
}

#!/usr/bin/env bash
# Copyright The netplane Authors.
# SPDX-License-Identifier: Apache-2.0

# Takes netplane out of a cluster, so that no pod is cut off:
#
#   hack/uninstall.sh restore [CONTEXT]    each node gets its own CNI configuration back; running pods keep their networks
#   hack/uninstall.sh remove [CONTEXT]     netplane's objects and parts go, once no pod with networks is left
#
# docs/user/uninstall.md says what happens in between. Both may be run again; kubectl apply -k manifests/base undoes the first.
set -o errexit -o nounset -o pipefail
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

step="${1:-}"
context="${2:-}"
agents=daemonset/netplane-agent

k() { kubectl ${context:+--context "$context"} "$@"; }
np() { k --namespace netplane-system "$@"; }

# asking_pods: "namespace/name" of all pods that asked for networks and have not ended. Those that asked by NetworkAttachmentDefinitions
# count where the agents serve these (the arguments of the agents are the first of this function); else they are Multus's.
asking_pods() {
	local asks='index . "netplane.io/networks"'
	if [[ $1 == *--nad-plugin-types* ]]; then
		asks="or (index . \"netplane.io/networks\") (index . \"k8s.v1.cni.cncf.io/networks\") (index . \"v1.multus-cni.io/default-network\")"
	fi
	# shellcheck disable=SC2016 # $p is the template's
	k get pods --all-namespaces --output go-template='{{range .items}}{{$p := .}}{{with .metadata.annotations}}{{if '"$asks"'}}{{if and (ne $p.status.phase "Succeeded") (ne $p.status.phase "Failed")}}{{$p.metadata.namespace}}/{{$p.metadata.name}}{{"\n"}}{{end}}{{end}}{{end}}{{end}}'
}

# stop_scheduler: a pod that is placed from now on would start without its networks.
stop_scheduler() {
	local config served
	# That in use: an earlier profile's may be left behind.
	config="$(np get deployment/netplane-scheduler --output jsonpath='{.spec.template.spec.volumes[*].configMap.name}')"
	served="$(np get configmap "$config" --output jsonpath='{.data.config\.yaml}')"
	if [[ $served == *"schedulerName: default-scheduler"* ]]; then
		die "netplane-scheduler places this cluster's other pods too: start the stock kube-scheduler, then kubectl apply --server-side -k manifests/base"
	fi
	np scale deployment/netplane-scheduler --replicas=0 >&2
	np rollout status deployment/netplane-scheduler --timeout=120s >&2
}

restore() {
	np get "$agents" >/dev/null || die "there is no $agents in netplane-system: nothing is installed here"
	stop_scheduler
	if [[ "$(np get "$agents" --output jsonpath='{.spec.template.spec.containers[0].args}')" != *'"--uninstall"'* ]]; then
		np patch "$agents" --type=json --patch='[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--uninstall"}]' >&2
	fi
	np rollout status "$agents" --timeout="${NETPLANE_ROLLOUT_TIMEOUT:-30m}" >&2
	say "every node has its own CNI configuration back"
}

remove() {
	local args left
	args="$(np get "$agents" --ignore-not-found --output jsonpath='{.spec.template.spec.containers[0].args}')"
	[[ -z $args || $args == *'"--uninstall"'* ]] || die "run hack/uninstall.sh restore first"
	left="$(asking_pods "$args")"
	[[ -z $left ]] || die "pods with networks are left, and what they have on their nodes would stay there; delete them first:
$left"
	# While the controller and the agents run: they hold these objects until all that depends on them is gone.
	if [[ -n "$(k get customresourcedefinition networks.netplane.io --ignore-not-found --output name)" ]]; then
		k delete ipclaims,networks,physicalnetworks --all --timeout=180s >&2
	fi
	k delete --ignore-not-found --timeout=180s -k "$ROOT/manifests/base" >&2
	say "netplane is gone; /opt/cni/bin/netplane stays on the nodes until somebody removes it"
}

need kubectl "it talks to the cluster"
case "$step" in
restore | remove) "$step" ;;
*) die "usage: hack/uninstall.sh restore|remove [CONTEXT]" ;;
esac

#!/bin/bash
# Runs what TEST says, the suite or the figures, on a cluster: suite.sh node|kind|kubeconfig ACTIVATOR SIDECAR TESTAPP [CASE…].
# `node` is the cluster without Docker, `kind` the one that kind makes, each started for the run and ended after it unless
# KEEP is set; `kubeconfig` is whatever KUBECONFIG names, which has the three images already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
where=$1 activator=$2 sidecar=$3 testapp=$4
shift 4

HELM=$("$here/../cluster/helm.sh")
export HELM
case $where in
node | kind)
    cluster=$here/$where.sh
    images=$(mktemp -d)
    end() {
        local status=$?
        rm -rf "$images"
        [ $status -eq 0 ] || "$cluster" logs "$here/../../target/e2e/node" || true
        if [ -n "${KEEP:-}" ]; then
            echo "suite.sh: the cluster is up: KUBECONFIG=${KUBECONFIG:-}; $cluster status, enter, load, down"
        else
            "$cluster" down
        fi
    }
    "$cluster" down
    trap end EXIT
    KUBECONFIG=$("$cluster" up)
    export KUBECONFIG
    "$here/images.sh" "$images" "$activator" "$sidecar" "$testapp"
    "$cluster" load "$images"/*.tar
    ;;
kubeconfig) : "${KUBECONFIG:?it has to name a kubeconfig}" ;;
*)
    echo "suite.sh: $where is neither node, kind nor kubeconfig" >&2
    exit 64
    ;;
esac

# Pods are reached by their addresses, which a machine knows of the node alone.
enter=()
[ "$where" = kind ] && enter=("$cluster" enter env "PATH=$PATH" "HELM=$HELM" "KUBECONFIG=$KUBECONFIG")
# shellcheck disable=SC2086
"${enter[@]}" ${TEST:?what runs on it} "$@"

#!/usr/bin/env bash
# One run on a TPU pod slice, by gcloud: makes the slice, installs r1jax on every host, runs the same command on all.
#
#     export PROJECT=my-project ZONE=us-east5-a SHARE=10.0.0.2:/share
#     tools/launch/tpu_pod.sh create     # returns when the slice is there, which may take days
#     tools/launch/tpu_pod.sh install
#     tools/launch/tpu_pod.sh run --config=configs/r1_zero.py --workdir=/shared/runs/r1_zero
#     tools/launch/tpu_pod.sh delete
#
# The workdir must be one folder that all hosts see, on a POSIX file system: SHARE is an NFS share in the slice's
# network, such as one of Filestore, and is mounted at /shared. A bucket mounted by Cloud Storage FUSE will not do: a
# checkpoint is built in a folder that is then renamed, which a bucket does not do at once, and other hosts go on seeing
# what they have cached.
#
# A preempted slice gets SIGTERM: the run saves and stops. Its hosts are gone then: `delete`, `create`, `install` and
# `run` again go on, on another number of hosts too.
set -euo pipefail

: "${PROJECT:?the Google Cloud project}" "${ZONE:?a zone that has the TPU type}"
NAME=${NAME:-r1jax}
TYPE=${TYPE:-v5p-2048}         # 1,024 chips of v5p
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
SOURCE=${SOURCE:-.}            # the checkout that is copied to every host
POLL_SECONDS=${POLL_SECONDS:-30}

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
}

# A queued resource is a request: only once it is ACTIVE there are hosts.
wait_until_active() {
  local state
  while true; do
    state=$(gcloud compute tpus queued-resources describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
      --format='value(state.state)')
    case $state in
      ACTIVE) return ;;
      FAILED | DELETING | SUSPENDING | SUSPENDED)
        echo "the queued resource $NAME is $state: delete it and create it again" >&2
        return 1
        ;;
    esac
    echo "the queued resource $NAME is $state" >&2
    sleep "$POLL_SECONDS"
  done
}

case ${1:?create, install, run or delete} in
  create)
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --project="$PROJECT" --zone="$ZONE" \
      --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${SPOT:+--spot}
    wait_until_active
    ;;
  install)
    : "${SHARE:?the NFS share of the workdirs, HOST:/PATH}"
    wait_until_active
    gcloud compute tpus tpu-vm scp --recurse "$SOURCE" "$NAME":r1jax --project="$PROJECT" --zone="$ZONE" --worker=all
    # The image's own python3 may be older than the 3.11 that r1jax needs.
    on_all "set -e; cd r1jax
            python3 -m pip install --user uv
            python3 -m uv venv --clear --python 3.12 .venv
            python3 -m uv pip install --python .venv/bin/python -e '.[tpu]'
            sudo apt-get install -y nfs-common
            sudo mkdir -p /shared
            mountpoint -q /shared || sudo mount -t nfs -o hard $(printf '%q' "$SHARE") /shared"
    ;;
  run)
    shift
    # jax reads the hosts of the slice from its metadata: --distributed=on asks it to.
    on_all "mountpoint -q /shared || { echo '/shared is not mounted: install first' >&2; exit 2; }
            cd r1jax && exec .venv/bin/python -m r1jax.train --distributed=on $(printf '%q ' "$@")"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet
    ;;
  *)
    echo "unknown: $1; create, install, run or delete" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# One run on a TPU pod slice, by gcloud: makes the slice, installs r1jax on every host, runs the same command on all.
#
#     PROJECT=my-project ZONE=us-east5-a BUCKET=my-bucket tools/launch/tpu_pod.sh create
#     ... tools/launch/tpu_pod.sh install
#     ... tools/launch/tpu_pod.sh run --config=configs/r1_zero.py --workdir=/gcs/runs/r1_zero
#     ... tools/launch/tpu_pod.sh delete
#
# The workdir must be one folder that all hosts see: here a bucket mounted by Cloud Storage FUSE at /gcs (a Filestore or
# other NFS share does as well). A preempted slice gets SIGTERM: the run saves and stops; `create` and `run` again go on,
# on another number of hosts too.
set -euo pipefail

: "${PROJECT:?the Google Cloud project}" "${ZONE:?a zone that has the TPU type}"
NAME=${NAME:-r1jax}
TYPE=${TYPE:-v5p-2048}         # 1,024 chips of v5p
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
SOURCE=${SOURCE:-.}            # the checkout that is copied to every host

on_all() {
  gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="$1"
}

case ${1:?create, install, run or delete} in
  create)
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --project="$PROJECT" --zone="$ZONE" \
      --accelerator-type="$TYPE" --runtime-version="$RUNTIME" ${SPOT:+--spot}
    ;;
  install)
    : "${BUCKET:?the bucket of the workdirs}"
    gcloud compute tpus tpu-vm scp --recurse "$SOURCE" "$NAME":r1jax --project="$PROJECT" --zone="$ZONE" --worker=all
    on_all "cd r1jax && python3 -m pip install -e '.[tpu]' &&
            sudo mkdir -p /gcs && sudo chown \$USER /gcs && gcsfuse --implicit-dirs '$BUCKET' /gcs"
    ;;
  run)
    shift
    # jax reads the hosts of the slice from its metadata: --distributed=on asks it to.
    on_all "cd r1jax && python3 -m r1jax.train --distributed=on $(printf '%q ' "$@")"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" --force --quiet
    ;;
  *)
    echo "unknown: $1; create, install, run or delete" >&2
    exit 2
    ;;
esac

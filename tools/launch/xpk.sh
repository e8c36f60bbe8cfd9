#!/usr/bin/env bash
# One run on TPU slices of a GKE cluster, by xpk (github.com/AI-Hypercomputer/xpk), which makes cluster and job.
#
#     PROJECT=my-project ZONE=us-east5-a CLUSTER=r1jax IMAGE=us-docker.pkg.dev/my-project/r1jax/r1jax:latest \
#       tools/launch/xpk.sh --config=configs/r1_zero.py --workdir=/shared/runs/r1_zero
#
# The cluster is made once:
#     xpk cluster create --cluster=r1jax --tpu-type=v5p-2048 --num-slices=1 --project=... --zone=...
# and the shared folder attached to it once, at the mount point /shared (a Filestore share; no bucket, see tpu_pod.sh):
#     xpk storage create runs --type=gcpfilestore --cluster=r1jax --auto-mount=true --mount-point=/shared ...
# The image holds the checkout, in which the command runs (see jobset.yaml). With SLICES > 1 set the mesh's axis `slice`
# to as many.
#
# xpk restarts of itself what ended with 42 or from 127 on: 137 and 143, killed or stopped by a signal. 70 is that of
# the processes that end because another one did. Errors, 1 and 2, end the workload.
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${IMAGE:?}"
xpk workload create \
  --workload="${NAME:-r1jax}" --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --tpu-type="${TYPE:-v5p-2048}" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts="${RESTARTS:-100}" --restart-on-exit-codes=70 --termination-grace-period-seconds=300 \
  --command="python3 -m r1jax.train --distributed=on $(printf '%q ' "$@")"

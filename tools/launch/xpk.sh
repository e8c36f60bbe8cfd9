#!/usr/bin/env bash
# One run on TPU slices of a GKE cluster, by xpk (github.com/AI-Hypercomputer/xpk), which makes cluster and job.
#
#     PROJECT=my-project ZONE=us-east5-a CLUSTER=r1jax IMAGE=us-docker.pkg.dev/my-project/r1jax/r1jax:latest \
#       tools/launch/xpk.sh --config=configs/r1_zero.py --workdir=/shared/runs/r1_zero
#
# The cluster is made once:
#     xpk cluster create --cluster=r1jax --tpu-type=v5p-2048 --num-slices=1 --project=... --zone=...
# and the shared folder attached to it once, at the mount point /shared (a Filestore share, or a bucket):
#     xpk storage create runs --type=gcpfilestore --cluster=r1jax --auto-mount=true --mount-point=/shared ...
# The image has r1jax with the extra `tpu` (see jobset.yaml). With SLICES > 1 set the mesh's axis `slice` to as many.
set -euo pipefail

: "${PROJECT:?}" "${ZONE:?}" "${CLUSTER:?}" "${IMAGE:?}"
xpk workload create \
  --workload="${NAME:-r1jax}" --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --tpu-type="${TYPE:-v5p-2048}" --num-slices="${SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts="${RESTARTS:-100}" \
  --command="python3 -m r1jax.train --distributed=on $(printf '%q ' "$@")"

#!/usr/bin/env bash
# What is known in advance about Sana-0.6B at 512 px, checked on its published weights; writes one JSON to attach to an issue.
#
#   hf auth login
#   experiments/real_weights.sh [OUT]       default OUT: real_weights; about 12 GB of downloads
#   DATA=DIR experiments/real_weights.sh    at least 64 captioned images of 512 px or more; default: the packaged clip art
#
# Not yet run with real weights.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(realpath -m "${1:-real_weights}")
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SANAKIT_CACHE="${SANAKIT_CACHE:-$out/cache}"

repository=Efficient-Large-Model/Sana_600M_512px_diffusers
half=Efficient-Large-Model/Sana_600M_512px_BF16_diffusers
"$python" experiments/benchmarks/real_weights.py --repository "$repository" --half "$half" --out "$out" --data "${DATA:-openclipart}"
echo "attach $out/real_weights.json"

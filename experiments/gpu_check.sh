#!/usr/bin/env bash
# What one GPU says of sanakit, in at most 8 minutes, with nothing to download: one JSON a check, in order of worth.
#
#   experiments/gpu_check.sh [OUT]          default OUT: gpu_check
#   MODE=cpu experiments/gpu_check.sh OUT   small shapes on the CPU: shows that the script runs, measures nothing
#   WHEELS=DIR experiments/gpu_check.sh     packages that this Python lacks lie in DIR as wheels (diffusers, pydantic, typer ...)
#
# Needs Python 3.11 or newer with torch, transformers, accelerate and peft. The repository is used as it lies: no installation.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 3

out=$(realpath -m "${1:-gpu_check}")
mode=${MODE:-gpu}
python=${PYTHON:-python3}
mkdir -p "$out" || exit 3
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false SANAKIT_CACHE="${SANAKIT_CACHE:-$out/cache}"

if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$out/site" \
        "$WHEELS"/*.whl || exit 3
    PYTHONPATH="$PYTHONPATH:$out/site"
fi

options=()
[ "$mode" = cpu ] && options=(--cpu)
failed=0
checks=0

# seconds that a check may take; what ends it leaves the JSON of the checks before
check() {
    local name=$1 limit=$2
    shift 2
    checks=$((checks + 1))
    echo "== $name (at most $limit s)"
    if ! timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        failed=$((failed + 1))
        echo "   not finished; the end of $out/$name.log:"
        tail -n 5 "$out/$name.log" | sed 's/^/   /'
    fi
}

limit() { if [ "$mode" = cpu ]; then echo 600; else echo "$1"; fi; }

check tests "$(limit 90)" "$python" experiments/benchmarks/gpu_check.py tests --out "$out" "${options[@]}"
check memory "$(limit 60)" "$python" experiments/benchmarks/gpu_check.py memory --out "$out" "${options[@]}"
check syncs "$(limit 45)" "$python" experiments/benchmarks/gpu_check.py syncs --out "$out" "${options[@]}"
check loop "$(limit 60)" "$python" experiments/benchmarks/gpu_check.py loop --out "$out" "${options[@]}"
check kernels "$(limit 100)" "$python" experiments/benchmarks/gpu_check.py kernels --out "$out" "${options[@]}"
check encode "$(limit 60)" "$python" experiments/benchmarks/gpu_check.py encode --out "$out" "${options[@]}"
if [ "$mode" != cpu ]; then
    check real_size "$(limit 65)" "$python" experiments/benchmarks/real_size.py --out "$out/real_size"
fi

echo "$((checks - failed)) of $checks checks finished; their JSON lies in $out"
[ "$failed" -eq 0 ]

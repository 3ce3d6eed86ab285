#!/usr/bin/env bash
# Everything that needs one GPU, in under ten minutes and without a network: do the methods compute the same there, how
# long do they take, and what do they save? Given again, it goes on where it stopped.
#
#   scripts/gpu_run.sh                     # results in results/gpu
#   OUT=/tmp/out LIMIT=1200 scripts/gpu_run.sh
#
# OUT      folder of the results: efficiency/, stock/, compiled/, cudnn/, bench_methods/; log.txt notes the end of each step
# LIMIT    seconds for all steps together; what did not get its turn is left for the next call
# WHEELS   folder of wheels to use where packages are missing and nothing can be downloaded (hydra-core, omegaconf,
#          antlr4-python3-runtime; decord, and av or a cache with its file, to measure on an mp4 file, else on random
#          pixels)
# PYTHON, DEVICE, PROFILE   interpreter; cuda or cpu; profile of configs/table/efficiency.yaml
# MMG_BENCH_COMMIT   the commit, where the code is a copy without its own history
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-results/gpu} LIMIT=${LIMIT:-560} WHEELS=${WHEELS:-.whl}
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} PROFILE=${PROFILE:-gpu}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
started=$SECONDS failures=0

left() { echo $((LIMIT - (SECONDS - started))); }

# step NAME LIMIT COMMAND...: once, within its time and that of the whole; its failure is noted and does not end the rest
step() {
    local name=$1 limit=$2 from=$SECONDS status
    shift 2
    if grep -qs "^step	$name	ok" "$OUT/log.txt"; then
        echo "== $name: done before"
        return
    fi
    ((limit < $(left))) || limit=$(left)
    if ((limit < 2)); then
        echo "== $name: no time left"
        failures=$((failures + 1))
        return
    fi
    echo "== $name (at most $limit s): $*"
    timeout --signal=INT --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$OUT/log.txt"
    status=${PIPESTATUS[0]}
    ((status == 0)) && status=ok || failures=$((failures + 1))
    printf 'step\t%s\t%s\t%s s\n' "$name" "$status" $((SECONDS - from)) | tee -a "$OUT/log.txt"
}

if [ -d "$WHEELS" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    PYTHONPATH="$site:$PYTHONPATH"
fi
"$PYTHON" - "$DEVICE" <<'EOF' || exit 1
import sys, torch, transformers
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no CUDA device")
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "the CPU"
print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}")
EOF
video=random
# decord reads it; av writes it, unless the cache ($MMG_BENCH_CACHE) holds it already
"$PYTHON" -c 'import decord; from mmg_bench.measure.workload import standard_video as v; v()' 2>/dev/null && video=generated

options=(table=efficiency profile="$PROFILE" table.video="$video" measure.new_tokens=4)
few=('table.retention_ratios=[0.25,0.1]'
    '~table.profiles.gpu.workloads.llava_onevision_0_5b' '~table.profiles.gpu.workloads.qwen2_5_vl_7b'
    'table.profiles.gpu.workloads.llava_onevision_7b.frames=[32]')
[ "$DEVICE" = cuda ] && engine=graphs || engine=stock

step golden 90 env MMG_GOLDEN_DEVICE="$DEVICE" "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_golden.py
step gpu_tests 90 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/measure tests/methods tests/models
step bench_methods 120 "$PYTHON" -m mmg_bench bench-methods device="$DEVICE" dtype=bfloat16 seconds=4 \
    out="$OUT/bench_methods"
# what the stock forward takes, the host's time and all
[ "$PROFILE" = gpu ] && step stock 90 "$PYTHON" -m mmg_bench table "${options[@]}" "${few[@]}" measure.engine=stock \
    output_dir="$OUT/stock" results_dir="$OUT/stock"
step efficiency "$LIMIT" "$PYTHON" -m mmg_bench table "${options[@]}" measure.engine="$engine" \
    output_dir="$OUT/efficiency" results_dir="$OUT/efficiency"
[ "$PROFILE" = gpu ] && step compiled 150 "$PYTHON" -m mmg_bench table "${options[@]}" "${few[@]}" \
    measure.engine=compile output_dir="$OUT/compiled" results_dir="$OUT/compiled"
[ "$PROFILE" = gpu ] && step cudnn 100 "$PYTHON" -m mmg_bench table "${options[@]}" "${few[@]}" \
    measure.engine="$engine" measure.sdpa=cudnn output_dir="$OUT/cudnn" results_dir="$OUT/cudnn"
grep "^step	" "$OUT/log.txt"
exit $((failures > 0))

#!/usr/bin/env bash
# Everything that needs one GPU, in under ten minutes and without a network: do the methods compute the same there, how
# long do they take, and what do they save? Given again, it goes on where it stopped.
#
#   scripts/gpu_run.sh                     # results in results/gpu
#   OUT=/tmp/out LIMIT=1200 scripts/gpu_run.sh
#
# OUT      folder of the results of one device, profile and video: efficiency/, stock/, compiled/, flash/,
#          bench_methods/; log.txt notes the end of each step
# LIMIT    seconds for all steps together; what would not be over by then is left for the next call
# VIDEO    generated (an mp4 file, written on first use: that needs av, reading it decord), random pixels, or a file
# WHEELS   folder of wheels to use where packages are missing or too old and nothing can be downloaded (hydra-core,
#          omegaconf, antlr4-python3-runtime, decord, transformers)
# PYTHON, DEVICE, PROFILE   interpreter; cuda or cpu; profile of configs/table/efficiency.yaml
# MMG_BENCH_COMMIT   the commit, where the code is a copy without its own history
# MMG_BENCH_CACHE    where the generated video lies, or is written
set -uo pipefail
VIDEO=${VIDEO:-generated} LIMIT=${LIMIT:-560}
if [ "$VIDEO" != generated ] && [ "$VIDEO" != random ]; then
    VIDEO=$(realpath -e "$VIDEO") || exit 1
fi
[[ $LIMIT =~ ^[0-9]+$ ]] || { echo "LIMIT=$LIMIT: it must be a number of seconds" >&2; exit 1; }
cd "$(dirname "$0")/.."
OUT=${OUT:-results/gpu} WHEELS=${WHEELS:-.whl}
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} PROFILE=${PROFILE:-gpu}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"
started=$SECONDS failures=0

# step NAME LEAST MOST COMMAND...: once, if there are LEAST seconds left, and for MOST at most; its failure is noted and
# does not end the rest
step() {
    local name=$1 least=$2 most=$3 from=$SECONDS status left
    shift 3
    left=$((LIMIT - (SECONDS - started)))
    if grep -qs "^step	$name	ok" "$OUT/log.txt"; then
        echo "== $name: done before"
        return
    fi
    if ((left < least)); then
        echo "== $name: no time left"
        failures=$((failures + 1))
        return
    fi
    ((most < left)) || most=$left
    echo "== $name (at most $most s): $*"
    timeout --signal=INT --kill-after=5 "$most" "$@" 2>&1 | tee -a "$OUT/log.txt"
    status=${PIPESTATUS[0]}
    ((status == 0)) && status=ok || failures=$((failures + 1))
    printf 'step\t%s\t%s\t%s s\n' "$name" "$status" $((SECONDS - from)) | tee -a "$OUT/log.txt"
}

if [ -d "$WHEELS" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    PYTHONPATH="$site:$PYTHONPATH"
fi
device=$("$PYTHON" - "$DEVICE" <<'EOF'
import sys, tomllib
from importlib.metadata import PackageNotFoundError, version
from packaging.requirements import Requirement

import torch

wanted = list(map(Requirement, tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))
wanted += map(Requirement, ("omegaconf", "pytest", "hypothesis"))
for package in wanted:
    if package.name not in ("lmms-eval", "matplotlib", "decord", "av"):  # not needed here, or only for VIDEO
        try:
            found = version(package.name)
        except PackageNotFoundError:
            sys.exit(f"{package.name} is not installed: put its wheel into WHEELS")
        if not package.specifier.contains(found, prereleases=True):
            sys.exit(f"{package.name} is {found}: put a wheel of {package} into WHEELS")
if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("torch sees no CUDA device")
print(torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "the CPU")
EOF
) || exit 1
echo "$device"
of="$device, PROFILE=$PROFILE, VIDEO=$VIDEO"
if [ -e "$OUT/of.txt" ] && [ "$(cat "$OUT/of.txt")" != "$of" ]; then
    echo "$OUT holds the results of $(cat "$OUT/of.txt"): give another OUT" >&2
    exit 1
fi
echo "$of" >"$OUT/of.txt"
if [ "$VIDEO" = generated ]; then
    "$PYTHON" -c 'import decord; from mmg_bench.measure.workload import standard_video as v; v()' || {
        echo "the video cannot be made: see VIDEO in this script" >&2
        exit 1
    }
fi

options=(table=efficiency profile="$PROFILE" table.video="$VIDEO" measure.new_tokens=4 measure.repeats=10)
few=('table.retention_ratios=[0.25,0.1]'
    '~table.profiles.gpu.workloads.llava_onevision_0_5b' '~table.profiles.gpu.workloads.qwen2_5_vl_7b'
    'table.profiles.gpu.workloads.llava_onevision_7b.frames=[32]')
[ "$DEVICE" = cuda ] && engine=graphs || engine=stock
mapfile -t gpu_tests < <(grep -rl 'mark\.gpu' tests --include='test_*.py')

# table NAME LEAST MOST OPTION...: the table of speed, another way
table() {
    local name=$1 least=$2 most=$3
    shift 3
    step "$name" "$least" "$most" "$PYTHON" -m mmg_bench table "${options[@]}" "$@" output_dir="$OUT/$name" \
        results_dir="$OUT/$name"
}

# what the time is wanted for most comes first; a table that is cut off goes on behind its last model and length
step golden 5 90 env MMG_GOLDEN_DEVICE="$DEVICE" "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_golden.py
table efficiency 60 "$LIMIT" measure.engine="$engine"
step bench_methods 60 150 "$PYTHON" -m mmg_bench bench-methods device="$DEVICE" dtype=bfloat16 seconds=4 \
    out="$OUT/bench_methods"
step gpu_tests 60 150 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu "${gpu_tests[@]}"
if [ "$PROFILE" = gpu ]; then
    # what the stock forward takes, the host's time and all; FlashAttention, where torch's own choice may be cuDNN's
    table stock 90 150 "${few[@]}" measure.engine=stock
    table flash 90 150 "${few[@]}" measure.engine="$engine" measure.sdpa=flash
    table compiled 180 300 "${few[@]}" measure.engine=compile
fi
grep "^step	" "$OUT/log.txt"
exit $((failures > 0))

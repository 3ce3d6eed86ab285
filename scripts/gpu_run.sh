#!/usr/bin/env bash
# Everything that needs one GPU, in under ten minutes and without a network: do the methods compute the same there, how
# long do they take, and what do they save? Given again, it goes on where it stopped.
#
#   scripts/gpu_run.sh                     # results in results/gpu
#   RESULTS=/tmp/out LIMIT=1200 scripts/gpu_run.sh
#
# RESULTS  folder of the results of one device, profile and video: efficiency/, stock/, flash/, compiled/,
#          bench_rivals/, bench_methods/; log.txt has all output, and notes the end of each step
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
RESULTS=${RESULTS:-results/gpu} WHEELS=${WHEELS:-.whl}
PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} PROFILE=${PROFILE:-gpu}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$RESULTS"
started=$SECONDS failures=0

# step NAME LEAST MOST COMMAND...: once for each state of the code, if there are LEAST seconds left, and for MOST at
# most; its failure is noted and does not end the rest
step() {
    local name=$1 least=$2 most=$3 from=$SECONDS status left
    shift 3
    left=$((LIMIT - (SECONDS - started)))
    if grep -qsF "step	$name	ok	$code	" "$RESULTS/log.txt"; then
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
    timeout --signal=INT --kill-after=5 "$most" "$@" 2>&1 | tee -a "$RESULTS/log.txt"
    status=${PIPESTATUS[0]}
    ((status == 0)) && status=ok || failures=$((failures + 1))
    printf 'step\t%s\t%s\t%s\t%s s\n' "$name" "$status" "$code" $((SECONDS - from)) | tee -a "$RESULTS/log.txt"
}

# state WHEN: the clocks and the power of the GPU
state() {
    [ "$DEVICE" = cuda ] || return
    { printf 'nvidia-smi %s the steps: ' "$1"
        nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,power.limit,temperature.gpu,pstate \
            --format=csv,noheader 2>&1; } | tee -a "$RESULTS/log.txt"
}

if [ -d "$WHEELS" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl || exit 1
    PYTHONPATH="$site:$PYTHONPATH"
fi
found=$("$PYTHON" scripts/gpu_check.py "$DEVICE" "$VIDEO") || exit 1
{ read -r device; read -r code; } <<<"$found"
echo "$found"
of="$device, PROFILE=$PROFILE, VIDEO=$VIDEO"
if [ -e "$RESULTS/of.txt" ] && [ "$(cat "$RESULTS/of.txt")" != "$of" ]; then
    echo "$RESULTS holds the results of $(cat "$RESULTS/of.txt"): give another RESULTS" >&2
    exit 1
fi
echo "$of" >"$RESULTS/of.txt"

# table STEP FOLDER LEAST MOST OPTION...: the table of speed, or a part of it; several steps may fill one folder
table() {
    local name=$1 folder=$RESULTS/$2 least=$3 most=$4
    shift 4
    step "$name" "$least" "$most" "$PYTHON" -m mmg_bench table table=efficiency profile="$PROFILE" \
        table.video="$VIDEO" measure.new_tokens=4 "$@" output_dir="$folder" results_dir="$folder"
}

# bench STEP LEAST MOST OPTION...: the time that methods take
bench() {
    local name=$1 least=$2 most=$3
    shift 3
    step "$name" "$least" "$most" "$PYTHON" -m mmg_bench bench-methods device="$DEVICE" dtype=bfloat16 "$@" \
        out="$RESULTS/$name"
}

# check STEP LEAST MOST OPTION...: tests
check() {
    local name=$1 least=$2 most=$3
    shift 3
    step "$name" "$least" "$most" env MMG_GOLDEN_DEVICE="$DEVICE" "$PYTHON" -m pytest -q -p no:cacheprovider "$@"
}

without_qwen='~table.profiles.gpu.workloads.qwen2_5_vl_7b'
only_7b=("$without_qwen" '~table.profiles.gpu.workloads.llava_onevision_0_5b')
short=("${only_7b[@]}" 'table.profiles.gpu.workloads.llava_onevision_7b.frames=[32]')
few=("${short[@]}" 'table.retention_ratios=[0.25,0.1]' measure.repeats=10)
[ "$DEVICE" = cuda ] && engine=measure.engine=graphs || engine=measure.engine=stock
mapfile -t gpu_tests < <(grep -rl 'mark\.gpu' tests --include='test_*.py')

# What is wanted most comes first. A table that is cut off goes on behind its last model and length; other steps anew.
state before
check graphs 5 60 -m '' -k "replayed_prefills and $DEVICE" tests/models/test_engines.py
[ "$PROFILE" != gpu ] || table efficiency_32 efficiency 60 300 "$engine" "${short[@]}"
bench bench_rivals 20 90 'methods=[mmg_vid,fastvid,flashvid,holitom,prunevid]' 'frames=[32]' seconds=8
check golden 5 90 tests/test_golden.py
if [ "$PROFILE" = gpu ]; then
    table efficiency_64 efficiency 60 200 "$engine" "${only_7b[@]}"
    table efficiency_0_5b efficiency 60 200 "$engine" "$without_qwen"
fi
table efficiency efficiency 60 400 "$engine"
if [ "$PROFILE" = gpu ]; then
    # what the stock forward takes, the host's time and all; FlashAttention, where torch's own choice may be cuDNN's
    table stock stock 60 150 "${few[@]}" measure.engine=stock
    table flash flash 60 150 "${few[@]}" "$engine" measure.sdpa=flash
    table compiled compiled 120 300 "${few[@]}" measure.engine=compile
fi
bench bench_methods 60 240 seconds=3
[ "$DEVICE" != cuda ] || check gpu_tests 60 150 -m gpu "${gpu_tests[@]}"
state after
grep "^step	" "$RESULTS/log.txt"
exit $((failures > 0))

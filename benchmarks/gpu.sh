#!/usr/bin/env bash
# The suite on one GPU, meant to take less than 8 minutes on an H100; needs no network.
#
#     benchmarks/gpu.sh [FOLDER]                            results into FOLDER, by default benchmarks/results
#     DEVICE=cpu SIZE=tiny benchmarks/gpu.sh FOLDER         every line once, where there is no GPU
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-benchmarks/results}
device=${DEVICE:-cuda}
case ${SIZE:-full} in
full) # MerRec's month: 2.77 M users, 4.2 M sessions, 0.9 M products
    rows=7900000 examples=2000000 batches="4096 65536" batch=65536 turns="--rounds 5 --steps 20"
    reference="--embedding-rows 1000000 7000000 --rounds 2" events=300000 evaluated=5000000
    ;;
tiny)
    rows=40000 examples=20000 batches=256 batch=256 turns="--rounds 1 --steps 2"
    reference="--embedding-rows 40000 --rounds 1 --steps 1 --batch-size 256 --examples 20000 --epochs 1" events=20000 evaluated=20000
    ;;
*)
    echo "SIZE is ${SIZE}; choose full or tiny" >&2
    exit 2
    ;;
esac

# shellcheck disable=SC2086  # several sizes are several words
bench() {
    echo "== $* (${SECONDS} s so far)"
    python "benchmarks/$1" "${@:2}" --out "$out"
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
workload=(--examples "$examples" --embedding-rows "$rows" --device "$device")

bench throughput.py merrec_aitm merrec_stem --batch-sizes $batches $turns "${workload[@]}"
stem="stem:model.expert_widths=[128,64]:model.shared_experts=1:model.tower=[64]"
bench steps.py "aitm:model.tower=[64]" "$stem" --batch-size "$batch" $turns "${workload[@]}"
bench memory.py merrec_aitm merrec_stem --batch-size "${batches%% *}" "${workload[@]}"
bench reference.py $reference --events "$events" --device "$device"
bench reader.py --events "$events"
bench evaluation.py --rows "$evaluated"
bench table.py merrec --events "$events" --seeds 1 --presets mmoe --work "$work" --overrides="--training.device $device"
python benchmarks/targets.py "$out"
echo "${SECONDS} s in all"

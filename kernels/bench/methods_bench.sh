#!/usr/bin/env bash
# Measures what plot_methods.py draws: every method at several sample counts, on random data of three spreads and, given
# a file of //client/examples:capture, on the language model's.
#
#   methods_bench.sh KERNEL_BENCH OUT_FOLDER [CAPTURED.safetensors] [-- more flags of kernel_bench]
#
# What the backend has not got (a sketch, say) is left out.
set -euo pipefail
bench=$1
out=$2
shift 2
captured=""
if [[ $# -gt 0 && $1 != -- ]]; then
  captured=$1
  shift
fi
[[ $# -gt 0 ]] && shift
mkdir -p "$out"

run() {  # NAME FLAGS...: the methods without a sketch, then SKETCHED with each that the backend has
  local name=$1
  shift
  for samples in 256 1024 4096; do
    "$bench" --json --samples=$samples "$@" > "$out/${name}_$samples.jsonl"
    for sketch in k4 k4v4 k8v8; do
      "$bench" --json --samples=$samples --sketch=$sketch --methods=EXACT,SKETCHED "$@" \
        > "$out/${name}_${samples}_$sketch.jsonl" || rm "$out/${name}_${samples}_$sketch.jsonl"
    done
  done
}

for sigma in 1.5 2.5 4.0; do run "sigma_$sigma" --sigma=$sigma "$@"; done
[[ -z $captured ]] || run model --input="$captured" "$@"

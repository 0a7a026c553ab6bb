#!/usr/bin/env bash
# Runs the unpacked //tests:gpu_bundle on a machine with an NVIDIA GPU and its driver.
#
#   ./run_gpu.sh [test|sanitize|bench|sdpa|load|demo|accuracy]...     all but sanitize by default, in this order
#
# test: the CUDA backend against the reference and the CPU. sanitize: the same under compute-sanitizer, where it is
# found, with a part of the seeds of statistical tests (hours: set TESTS, a GoogleTest filter). bench: kernel_bench_cuda
# on the shapes of docs/benchmarks.md. sdpa: torch's attention on the same ones, where python3 has torch. load: a client
# that keeps steps in flight on attention_server_cuda. demo and accuracy: a language model on it; the tables of
# docs/accuracy.md, which take long.
#
# Output goes to the terminal and to $OUT (default: results/), one file each, measurements as JSON lines. Ends with 1 if
# anything failed, having run the rest.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
out=${OUT:-results}
repetitions=${REPETITIONS:-25}
mkdir -p "$out"
failures=0

# run NAME COMMAND...: the command's output also in $out/NAME.
run() {
  local name=$1
  shift
  echo "=== $name: $*"
  "$@" 2>&1 | tee "$out/$name"
  local status=${PIPESTATUS[0]}
  if [[ $status != 0 ]]; then
    echo "FAILED ($status): $name"
    failures=$((failures + 1))
  fi
}

tests=(cuda_backend_test decode_test group_draw_test mapped_memory_test standard_error_test stored_scores_test)

run_test() {
  for test in "${tests[@]}"; do
    run "$test.txt" "./$test" --gtest_brief=1 --gtest_filter="${TESTS:-*}"
  done
}

run_sanitize() {
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [[ -z $sanitizer ]]; then
    echo "=== sanitize: no compute-sanitizer here"
    return
  fi
  for tool in memcheck racecheck synccheck; do
    for test in "${tests[@]}"; do
      SANTA_FEWER_SEEDS=${SANTA_FEWER_SEEDS:-25} run "$test.$tool.txt" "$sanitizer" --tool="$tool" --error-exitcode=3 "./$test" --gtest_brief=1 \
        --gtest_filter="${TESTS:-*}"
    done
  done
}

# bench NAME FLAG...
bench() {
  local name=$1
  shift
  run "bench_$name.jsonl" ./kernel_bench_cuda --backend=cuda --json --repetitions="$repetitions" "$@"
}

run_bench() {
  # For people: the device and its read ceiling.
  run bench_16x32768.txt ./kernel_bench_cuda --backend=cuda --batch=16 --tokens=32768 --repetitions="$repetitions"
  for shape in 1x32768 4x32768 16x32768 64x8192; do
    bench "$shape" --batch="${shape%x*}" --tokens="${shape#*x}" --samples=2048
  done
  bench 16x131072 --batch=16 --tokens=131072 --samples=4096 --methods=EXACT,S2ANTA_FLASH,S2ANTA_PROP
  bench 1x512 --batch=1 --tokens=512 --samples=64
  bench ragged --ragged=15x1024,1x131072 --samples=2048 --methods=EXACT,S2ANTA_FLASH
  bench 16x32768_fp8 --batch=16 --tokens=32768 --dtype=fp8_e4m3 --methods=EXACT,S2ANTA_FLASH,S2ANTA_PROP
  bench 16x32768_in_order --batch=16 --tokens=32768 --methods=EXACT,S2ANTA_FLASH,S2ANTA_PROP --pages_in_order
  # COORDINATED and SKETCHED count rows of a key/value head, S2ANTA_FLASH draws of a query head: errors meet at other S.
  for samples in 2048 4096 6144; do
    bench "16x32768_k4_s$samples" --batch=16 --tokens=32768 --sketch=k4 --samples="$samples" \
      --methods=EXACT,S2ANTA_FLASH,COORDINATED,SKETCHED
  done
  for shape in 1x32768 4x32768 1x131072 16x131072; do
    bench "${shape}_k4" --batch="${shape%x*}" --tokens="${shape#*x}" --sketch=k4 --samples=2048 \
      --methods=EXACT,S2ANTA_FLASH,COORDINATED,SKETCHED
  done
  # Other groups and dimensions, 2 GiB of keys and values each.
  bench 16x32768_g1 --batch=16 --tokens=32768 --query_heads=8 --methods=EXACT
  bench 16x32768_g8 --batch=16 --tokens=32768 --query_heads=64 --methods=EXACT
  bench 16x32768_g16 --batch=16 --tokens=32768 --query_heads=128 --methods=EXACT
  bench 32x32768_d64 --batch=32 --tokens=32768 --head_dim=64 --methods=EXACT
  bench 8x32768_d256 --batch=8 --tokens=32768 --head_dim=256 --methods=EXACT
}

run_sdpa() {
  if ! python3 -c 'import torch' 2>/dev/null; then
    echo "=== sdpa: no torch here"
    return
  fi
  run sdpa.jsonl python3 sdpa_bench.py 1x32768 4x32768 16x32768 64x8192 16x131072 --repetitions="$repetitions"
}

# One client of 16 sequences of 32,768 tokens: how much of the time is the device busy?
run_load() {
  local ports
  ports=$(mktemp -d)
  ./attention_server_cuda --backend=cuda --num_layers=1 --kv_bytes=4GiB --listen=127.0.0.1:0 --http_port=0 \
    --port_file="$ports/ports" >"$out/load_server.log" 2>&1 &
  local server=$!
  for _ in {1..100}; do
    [[ -s $ports/ports ]] && break
    sleep 0.1
  done
  local grpc http
  { read -r grpc && read -r http; } <"$ports/ports"
  for in_flight in 1 2 4; do
    run "load_in_flight_$in_flight.txt" ./attention_bench --server="127.0.0.1:$grpc" --metrics="127.0.0.1:$http" \
      --sequences=16 --tokens=32768 --in_flight="$in_flight" --method=EXACT
  done
  kill -TERM "$server"
  wait "$server" || failures=$((failures + 1))
  rm -rf "$ports"
}

on_cuda=(--server=attention_server_cuda --server_flags=--backend=cuda)

run_demo() {
  run demo.txt ./demo "${on_cuda[@]}"
}

run_accuracy() {
  for context in 2048 8192; do
    run "accuracy_$context.txt" ./accuracy "${on_cuda[@]}" --context="$context"
  done
  run accuracy_32768.txt ./accuracy "${on_cuda[@]}" --context=32768 \
    --passages=kjv_judges,python_argparse,postgresql_plpgsql
}

for part in "${@:-test bench sdpa load demo accuracy}"; do
  for each in $part; do
    case $each in
      test | sanitize | bench | sdpa | load | demo | accuracy) "run_$each" ;;
      *)
        sed -n '2,/^set/{/^#/p}' "$0"
        exit 2
        ;;
    esac
  done
done
echo "=== $failures failed; results in $out"
[[ $failures == 0 ]]

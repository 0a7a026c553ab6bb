#!/usr/bin/env bash
# The server's resident set after 100,000 steps and on to 10 million, of a small shape on the CPU: a line each time it is
# looked at. Usage: resident_set.sh ATTENTION_SERVER ATTENTION_BENCH [SHARE_MEMORY=true]
set -euo pipefail
server=$1 bench=$2 share_memory=${3:-true}
folder=$(mktemp -d)
"$server" --listen=127.0.0.1:0 --http_port=0 --port_file="$folder/ports" --num_layers=1 --num_query_heads=2 \
    --num_kv_heads=1 --head_dim=8 --kv_bytes=16MiB --threads=1 2> "$folder/server.log" &
server_id=$!
trap 'kill "$server_id" "${bench_id:-}" 2> /dev/null || true; rm -rf "$folder"' EXIT
until [[ -s $folder/ports ]]; do sleep 0.1; done
{ read -r port; read -r http_port; } < "$folder/ports"
"$bench" --server="127.0.0.1:$port" --tokens=16 --clients=2 --seconds=86400 --share_memory="$share_memory" \
    > "$folder/bench.log" 2>&1 &
bench_id=$!

steps() {
  exec 3<> "/dev/tcp/127.0.0.1/$http_port"
  printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
  awk '/^santa_attend_items_total/ {sum += $2} END {printf "%.0f\n", sum}' <&3
  exec 3<&-
}

for next in 100000 1000000 4000000 7000000 10000000; do
  until done=$(steps) && ((done >= next)); do
    kill -0 "$bench_id"
    sleep 2
  done
  echo "$done steps, $(awk '/^VmRSS/ {print $2}' "/proc/$server_id/status") KiB"
done

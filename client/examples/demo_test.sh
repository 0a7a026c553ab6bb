#!/usr/bin/env bash
# The demo runs end to end, prints a row for every method and leaves no server behind.
set -euo pipefail
demo=client/examples/demo

out=$("$demo" --context=512 --passages=kjv_judges --pass_keys=2 --score_bytes=32 --generate=16)
echo "$out"
for word in LOCAL EXACT SANTA STRATIFIED SYSTEMATIC S2ANTA_FLASH S2ANTA_PROP COORDINATED SKETCHED 'Prompt (' santa_kv_bytes_read_total; do
  grep -qF -- "$word" <<<"$out" || { echo "missing in the output: $word"; exit 1; }
done

lines=$("$demo" --context=512 --passages=kjv_judges --pass_keys=2 --score_bytes=32 --generate=0 --methods=EXACT,S2ANTA_FLASH --json)
[[ $(wc -l <<<"$lines") == 3 ]] || { echo "not three lines of JSON: $lines"; exit 1; }
grep -q '"method":"S2ANTA_FLASH","samples":32,"context":512' <<<"$lines" || { echo "$lines"; exit 1; }

if "$demo" --context=10 2>err; then echo "a context of 10 bytes should be refused"; exit 1; fi
grep -q 'too short' err || { cat err; exit 1; }

# A demo that dies takes its server with it.
"$demo" --context=4096 --generate=0 2>err >/dev/null &
demo_pid=$!
for _ in $(seq 200); do
  read -r server_pid <"/proc/$demo_pid/task/$demo_pid/children" || true
  [[ -n $server_pid ]] && break
  sleep 0.05
done
[[ -n ${server_pid:-} ]] || { echo "the demo started no server"; exit 1; }
kill -KILL "$demo_pid"
for _ in $(seq 200); do
  kill -0 "$server_pid" 2>/dev/null || exit 0
  sleep 0.05
done
echo "the server outlives the demo"
exit 1

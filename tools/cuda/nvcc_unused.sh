#!/usr/bin/env bash
# nvcc_unused.sh HEADERS OBJECT UNUSED NVCC...: NVCC... -o OBJECT; to UNUSED, which of the files listed in HEADERS were not
# read: Bazel then compiles again for those alone that were.
set -euo pipefail
headers=$1 object=$2 unused=$3
shift 3
"$@" -MD -MF "$unused.d" -o "$object"
comm -23 <(sort -u "$headers") <(tr -s ' \\\n' '\n' < "$unused.d" | sed 's|^[.]/||' | sort -u) > "$unused"

#!/usr/bin/env bash
# run_python.sh FILE.py [ARGUMENT...]: with the files beside it and packages from the root, as Bazel laid them out,
# and none that Bazel does not know of.
set -euo pipefail
PYTHONPATH=$(dirname "$1"):. exec python3 -B -P "$@"

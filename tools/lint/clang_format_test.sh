#!/usr/bin/env bash
# Every C++ and CUDA source that git tracks is as clang-format leaves it.
set -euo pipefail
cd "$(dirname "$(readlink -f WORKSPACE)")"
mapfile -t sources < <(git ls-files -- '*.cc' '*.h' '*.cu' '*.cuh')
((${#sources[@]})) || { echo "no sources found"; exit 1; }
clang-format-14 --dry-run --Werror "${sources[@]}"
echo "${#sources[@]} files are formatted"

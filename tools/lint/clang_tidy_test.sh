#!/usr/bin/env bash
# A source with a finding fails its action, and so this test's build; here only remains to see that every one was looked
# at. Not looked at: kernels/cuda, whose headers are there only where CUDA is, and
# third_party.
set -euo pipefail
reports=$(find . -name '*.tidy')
cd "$(dirname "$(readlink -f WORKSPACE)")"
failed=0
while read -r source; do
  grep -q "/$(dirname "$source")/[^/]*\.$(basename "$source")\.tidy$" <<< "/$reports" ||
    { echo "$source: add the target that compiles it to tools/lint:clang_tidy_reports" >&2; failed=1; }
done < <(git ls-files -- '*.cc' ':!kernels/cuda' ':!third_party')
echo "$(wc -l <<< "$reports") reports are clean"
exit "$failed"

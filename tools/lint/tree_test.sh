#!/usr/bin/env bash
# What a formatter cannot see: file lengths, shell syntax, trailing blanks, tabs in BUILD files.
set -euo pipefail
cd "$(dirname "$(readlink -f WORKSPACE)")"
failed=0
complain() { echo "$1" >&2; failed=1; }

while read -r file; do
  lines=$(wc -l < "$file")
  ((lines <= 520)) || complain "$file: $lines lines; split it by idea (about 500 at most)"
done < <(git ls-files -- '*.cc' '*.h' '*.cu' '*.cuh' '*.py' '*.bzl' '*.sh')

while read -r file; do
  bash -n "$file" || complain "$file: not valid bash"
done < <(git ls-files -- '*.sh' bazelw .ci/run)

while read -r file; do
  ! grep -nP '\t' "$file" || complain "$file: tabs"
  ! grep -nP ' +$' "$file" || complain "$file: trailing blanks"
  [[ -z $(tail -c1 "$file") ]] || complain "$file: no newline at the end"
done < <(git ls-files -- 'BUILD' '**/BUILD' 'WORKSPACE' '*.bzl' '*.proto' '*.yaml')

# What a document links to, or a comment names under docs/, is there.
while read -r file; do
  while read -r link; do
    [[ -e $(dirname "$file")/$link ]] || complain "$file: links to $link, which is not there"
  done < <(grep -oP '\]\(\K[^)#:]+(?=[)#])' "$file")
done < <(git ls-files -- '*.md')
while IFS=: read -r file name; do
  [[ -e $name ]] || complain "$file: names $name, which is not there"
done < <(git grep -oP '\bdocs/[\w/.-]+\.(md|svg|png)' -- ':!*.md')

# The program in the README is the one that is built and tested.
diff <(sed -n '/^```cpp$/,/^```$/p' README.md | sed '1d;$d') client/quickstart.cc ||
  complain "README.md: the program differs from client/quickstart.cc"
exit "$failed"

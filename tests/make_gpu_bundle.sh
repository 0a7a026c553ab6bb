#!/usr/bin/env bash
# make_gpu_bundle.sh ARCHIVE FILE...: programs, stripped, with the shared libraries that are not everywhere, and their
# data, in one folder of a .tar.xz. The programs have much in common, which a window of 256 MiB finds.
set -euo pipefail
archive=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/gpu_bundle
mkdir -p "$bundle/lib"

for file in "$@"; do
  case $file in
    *model/weights/* | *model/heldout/*)
      folder=$bundle/model/$(basename "$(dirname "$file")")
      mkdir -p "$folder"
      cp -L "$file" "$folder/"
      ;;
    *.py | *.sh) install -m 755 "$file" "$bundle/" ;;
    *)
      name=$(basename "$file")
      program=$bundle/${name%_portable}
      strip -o "$program" "$file"
      # The dynamic loader finds them here by the programs' run path. glibc is the machine's own, at least as new as
      # that of the build machine.
      ldd "$program" | awk '$3 ~ /^\// { print $3 }' |
        grep -vE '/(libc|libm|libdl|librt|libpthread)\.so' | xargs -r cp -L -n -t "$bundle/lib"
      ;;
  esac
done

# The libraries need one another.
chmod -R u+w "$bundle"
tar -C "$work" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - gpu_bundle | xz -T1 --lzma2=preset=2,dict=256MiB >"$archive"

"""Builds the training corpus and the held-out passages from Debian packages.

Every text comes from a Debian package, fetched by name with `apt-get download` and unpacked with
`dpkg -x` (nothing is installed). The result is one xz file of bytes; the held-out passages are cut out
of the same texts, written beside the script and never enter the corpus.

    python3 model/data.py            # writes model/.data/corpus.xz and model/heldout/*.txt
"""

from __future__ import annotations

import argparse
import collections
import gzip
import hashlib
import html
import json
import lzma
import pathlib
import re
import subprocess
from collections.abc import Iterable

HERE = pathlib.Path(__file__).resolve().parent
SEPARATOR = b"\n\n\n"

# package, licence of the text, kind of reader, glob patterns inside the unpacked package
SOURCES: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("bible-kjv-text", "public domain", "kjv", ()),
    ("dict-gcide", "GPL-2+", "dict", ("usr/share/dictd/gcide.dict.dz",)),
    ("dict-wn", "WordNet licence (permissive)", "dict", ("usr/share/dictd/wn.dict.dz",)),
    ("dict-jargon", "public domain", "dict", ("usr/share/dictd/jargon.dict.dz",)),
    ("dict-foldoc", "GFDL-1.1+", "dict", ("usr/share/dictd/foldoc.dict.dz",)),
    ("dict-devil", "public domain", "dict", ("usr/share/dictd/devil.dict.dz",)),
    ("dict-vera", "GFDL-1.1+", "dict", ("usr/share/dictd/vera.dict.dz",)),
    ("linux-doc-6.1", "GPL-2", "text", ("usr/share/doc/linux-doc-6.1/Documentation/**/*.rst.gz",)),
    ("python3.11-doc", "PSF-2", "text", ("usr/share/doc/python3.11/html/_sources/**/*.rst.txt",)),
    ("perl-doc", "GPL-1+ or Artistic", "text", ("usr/share/perl/**/*.pod",)),
    ("debian-reference-en", "GPL-2+", "html", ("usr/share/debian-reference/ch*.en.html",)),
    (
        "debian-handbook",
        "GPL-2+ or CC-BY-SA-3.0",
        "html",
        ("usr/share/doc/debian-handbook/html/en-US/*.html",),
    ),
    ("debian-policy", "GPL-2+", "text", ("usr/share/doc/debian-policy/policy.txt.gz",)),
    ("postgresql-doc-15", "PostgreSQL", "html", ("usr/share/doc/postgresql-doc-15/html/*.html",)),
    ("git-doc", "GPL-2", "text", ("usr/share/doc/git-doc/**/*.txt",)),
    ("sqlite3-doc", "public domain", "html", ("usr/share/doc/sqlite3/**/*.html",)),
    ("bash-doc", "GFDL-1.3+", "html", ("usr/share/doc/bash/bashref.html",)),
    ("zsh-doc", "zsh licence (permissive)", "html", ("usr/share/doc/zsh-common/html/*.html",)),
    ("nodejs-doc", "MIT", "text", ("usr/share/doc/nodejs/api/*.md.gz",)),
    ("python-django-doc", "BSD-3-Clause", "html", ("usr/share/doc/python-django-doc/html/**/*.html",)),
    ("python-sqlalchemy-doc", "MIT", "html", ("usr/share/doc/python-sqlalchemy-doc/html/*/*.html",)),
    ("r-doc-html", "GPL-2+", "html", ("usr/share/R/doc/manual/*.html",)),
    ("apache2-doc", "Apache-2.0", "html", ("usr/share/doc/apache2-doc/manual/en/**/*.html",)),
    ("anarchism", "GPL-2+", "html", ("usr/share/doc/anarchism/html/*.html",)),
    ("fortunes", "BSD-3-Clause (collection of quotations)", "text", ("usr/share/games/fortunes/*",)),
]
READERS = ["bible-kjv"]  # the reader of bible-kjv-text's packed file; not part of the corpus

# Files that would only repeat text (one-page editions, indexes, tables of links) or are no prose.
SKIP = re.compile(
    r"searchindex|genindex|/translations/|/all\.|doc_backlink|syntaxdiagrams|requirements\.html|"
    r"matrix/|sitemap|_modules/|bookindex|R-admin_toc|\.dat$|\.u8$|directives\.html|quickreference"
)
DROPPED_TAGS = re.compile(r"<(script|style|head|svg|nav|footer)\b.*?</\1\s*>", re.S | re.I)
BLOCK_TAGS = re.compile(
    r"</?(p|div|br|li|ul|ol|dl|dt|dd|h[1-6]|tr|table|pre|section|article|blockquote|hr)\b[^>]*>", re.I
)
HELDOUT_LIMIT = 98304


def strip_html(page: str) -> str:
    """Turns one HTML page into plain text with one line per block."""
    page = DROPPED_TAGS.sub("", page)
    parts = re.split(r"(<pre\b.*?</pre>)", page, flags=re.S | re.I)
    for i in range(0, len(parts), 2):  # outside <pre>, line breaks are spaces
        parts[i] = re.sub(r"\s+", " ", parts[i])
    text = BLOCK_TAGS.sub("\n", "".join(parts))
    text = re.sub(r"</t[dh]>", "  ", text, flags=re.I)
    text = re.sub(r"<!--.*?-->|<[^>]+>", "", text, flags=re.S)
    text = html.unescape(text).replace("\u00a0", " ").replace("\u00b6", "")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n ([^ ])", r"\n\1", text)).strip() + "\n"


def drop_navigation(pages: dict[str, str]) -> dict[str, str]:
    """Removes short lines that stand in more than a tenth of a package's pages (menus, footers)."""
    if len(pages) < 12:
        return pages
    counts: collections.Counter[str] = collections.Counter()
    for text in pages.values():
        counts.update({line.strip() for line in text.splitlines() if line.strip()})
    often = {line for line, n in counts.items() if n > 0.1 * len(pages) and len(line) < 200}
    keep_short = {"{", "}", ");", "};", "(", ")", "]", "*"}
    often -= keep_short
    out = {}
    for name, text in pages.items():
        lines = [line for line in text.splitlines() if line.strip() not in often]
        out[name] = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"
    return out


def read_bytes(path: pathlib.Path) -> bytes:
    """Reads a file, unpacking gzip (dictzip is gzip with an index)."""
    data = path.read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def read_kjv(root: pathlib.Path) -> dict[str, str]:
    """Reads the King James Bible through its own reader; one document per book, one verse a line."""
    root = root.resolve()
    binary = root / "bible-kjv" / "usr/bin/bible"
    data_dir = root / "bible-kjv-text" / "usr/lib"
    text = subprocess.run(
        [str(binary), "-f"],
        input="Gen1:1-Rev22:21\n",
        cwd=data_dir,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    books: dict[str, list[str]] = collections.defaultdict(list)
    first = True
    for line in text.splitlines():
        match = re.match(r"(?:bible\(KJV\) \[[^]]*\]> )?((?:[123])?[A-Za-z]+)(\d+:\d+ .*)", line)
        if not match:
            continue
        if first:  # the program greets with one verse before the first prompt
            first = False
            continue
        books[match.group(1)].append(match.group(1) + match.group(2))
    return {name: "\n".join(lines) + "\n" for name, lines in books.items()}


def read_package(root: pathlib.Path, package: str, kind: str, patterns: Iterable[str]) -> dict[str, str]:
    """Returns the documents of one package by name, in a fixed order."""
    if kind == "kjv":
        return read_kjv(root)
    base = root / package
    pages: dict[str, str] = {}
    paths = sorted(
        {p for pattern in patterns for p in base.glob(pattern) if p.is_file() and not p.is_symlink()}
    )
    for path in paths:
        name = str(path.relative_to(base))
        if SKIP.search(name):
            continue
        text = read_bytes(path).decode("utf-8", errors="replace").replace("\r", "").replace("\x00", "")
        if kind == "html":
            text = strip_html(text)
        if len(text) >= 500 and text.count("\ufffd") < 20:
            pages[name] = text
    return drop_navigation(pages) if kind == "html" else pages


def take_heldout(package: str, pages: dict[str, str]) -> dict[str, str]:
    """Removes the held-out passages from `pages` and returns them by file name."""
    held: dict[str, str] = {}
    if package == "bible-kjv-text":
        held["kjv_judges"] = pages.pop("Jdgs")
        held["kjv_romans"] = pages.pop("Rom")
    elif package == "dict-wn":
        (name,) = pages
        text = pages[name]
        start = text.index("\n", len(text) // 2) + 1
        while text[start] in " \n":  # an entry starts at the left margin
            start = text.index("\n", start) + 1
        end = text.index("\n", start + 80000) + 1
        while text[end] in " \n":
            end = text.index("\n", end) + 1
        held["wordnet"] = text[start:end]
        pages[name] = text[:start] + text[end:]
    elif package == "python3.11-doc":
        held["python_argparse"] = pages.pop("usr/share/doc/python3.11/html/_sources/library/argparse.rst.txt")
        pages.pop("usr/share/doc/python3.11/html/_sources/howto/argparse.rst.txt", None)
    elif package == "postgresql-doc-15":
        names = [n for n in pages if "/plpgsql" in n]
        held["postgresql_plpgsql"] = "\n\n".join(pages.pop(n) for n in names)
    return held


def fetch(cache: pathlib.Path, packages: list[str]) -> dict[str, str]:
    """Downloads and unpacks the packages that are missing; returns their versions."""
    debs, root = cache / "debs", cache / "x"
    debs.mkdir(parents=True, exist_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages if not list(debs.glob(f"{p}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", "-q", *missing], cwd=debs, check=True)
    versions = {}
    for package in packages:
        deb = next(debs.glob(f"{package}_*.deb"))
        versions[package] = subprocess.run(
            ["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not (root / package).exists():
            subprocess.run(["dpkg", "-x", str(deb), str(root / package)], check=True)
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=pathlib.Path, default=HERE / ".cache", help="downloaded packages")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / ".data", help="folder of corpus.xz")
    parser.add_argument(
        "--heldout", type=pathlib.Path, default=HERE / "heldout", help="folder of held-out texts"
    )
    parser.add_argument("--preset", type=int, default=9, help="xz preset")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.heldout.mkdir(parents=True, exist_ok=True)
    versions = fetch(args.cache, [s[0] for s in SOURCES] + READERS)

    seen: set[int] = set()
    corpus: list[bytes] = []
    rows = []
    held_rows = []
    for package, licence, kind, patterns in SOURCES:
        pages = read_package(args.cache / "x", package, kind, patterns)
        for name, text in take_heldout(package, pages).items():
            data = text.encode()[:HELDOUT_LIMIT]
            data = data[: data.rindex(b"\n") + 1]
            (args.heldout / f"{name}.txt").write_bytes(data)
            held_rows.append((f"{name}.txt", package, versions[package], licence, len(data)))
        size = 0
        for text in pages.values():
            data = text.encode()
            if hash(data) in seen:
                continue
            seen.add(hash(data))
            corpus.append(data)
            size += len(data)
        rows.append((package, versions[package], licence, len(pages), size))

    blob = SEPARATOR.join(corpus)
    for path in sorted(
        args.heldout.glob("*.txt")
    ):  # every 4096 bytes, 256 of them must not stand in the corpus
        data = path.read_bytes()
        for start in range(0, len(data) - 256, 4096):
            assert data[start : start + 256] not in blob, f"{path.name} leaks at {start}"
    (args.out / "corpus.xz").write_bytes(lzma.compress(blob, preset=args.preset))
    (args.out / "sources.json").write_text(json.dumps({"corpus": rows, "heldout": held_rows}, indent=1))

    print("| package | version | licence | documents | bytes |\n|---|---|---|---|---|")
    for package, version, licence, documents, size in rows:
        print(f"| {package} | {version} | {licence} | {documents} | {size:,} |")
    print(f"| total | | | {sum(r[3] for r in rows):,} | {len(blob):,} |")
    print("\n| held-out file | package | version | licence | bytes |\n|---|---|---|---|---|")
    for row in held_rows:
        print(f"| {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[4]:,} |")
    print(f"\nsha256 of the corpus: {hashlib.sha256(blob).hexdigest()}")
    print(f"corpus.xz: {(args.out / 'corpus.xz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

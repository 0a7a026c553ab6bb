"""Which metrics a PromQL expression names, and which there are."""

import re
from typing import Iterator, Set

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_GROUPING = ("by", "without", "on", "ignoring", "group_left", "group_right")
_KEYWORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan", "start", "end"}


def names(expression: str) -> Set[str]:
    """The metrics of an expression that is well formed, as promtool says: names that are no function and no label."""
    text = re.sub(r"#[^\n]*", " ", re.sub(r'"(\\.|[^"\\])*"|\'(\\.|[^\'\\])*\'', '""', expression))
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(%s)\s*\([^)]*\)" % "|".join(_GROUPING), " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(%s)\b(?!\s*\()" % "|".join(_GROUPING), " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\b0x[0-9a-fA-F]+|\b\d[\w.]*", " ", text)
    # An aggregation may have its grouping before its argument: that is gone by now, so a bracket follows here too.
    found = re.findall(r"(%s)\s*(\(?)" % _NAME, text)
    return {name for name, bracket in found if not bracket and name.lower() not in _KEYWORDS}


def documented(path: str = "docs/metrics.md") -> Set[str]:
    """Every series of the server, from the table that a test holds against it: a histogram has three."""
    series: Set[str] = set()
    with open(path, encoding="utf-8") as file:
        for name, kind in re.findall(r"^\| `(santa_\w+)` \| (counter|gauge|histogram) \|", file.read(), re.MULTILINE):
            series |= {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return series


def rules(document: dict) -> Iterator[dict]:
    """The rules of a file of rules."""
    for group in document["groups"]:
        yield from group["rules"]

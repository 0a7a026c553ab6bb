"""Adds up the test cases in Bazel's test logs and prints "N passed, N failed" alone on a line.

Skipped cases, if there are any, are counted on the line before it.

Usage: count_tests.py TESTLOGS_FOLDER. Exits 1 when a case failed or none ran.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree


def count(testlogs: pathlib.Path) -> dict[str, int]:
    """Counts passed, failed and skipped cases over every test.xml below `testlogs`."""
    totals = {"passed": 0, "failed": 0, "skipped": 0}
    for report in testlogs.rglob("test.xml"):
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            # GoogleTest marks a skipped case in its result; Bazel's own reports of shell tests have no such mark.
            if case.find("failure") is not None or case.find("error") is not None:
                totals["failed"] += 1
            elif case.get("result") in ("skipped", "suppressed") or case.find("skipped") is not None:
                totals["skipped"] += 1
            else:
                totals["passed"] += 1
    return totals


def main() -> int:
    totals = count(pathlib.Path(sys.argv[1]).resolve())
    if totals["skipped"]:
        print(f"{totals['skipped']} skipped: they need what this machine lacks, a GPU mostly")
    print(f"{totals['passed']} passed, {totals['failed']} failed")
    return 0 if totals["passed"] and not totals["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())

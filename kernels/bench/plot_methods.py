#!/usr/bin/env python3
"""Draws docs/methods_*.svg: the error of every method against the bytes and against the time that it takes, one column
for each data set, from the JSON lines of kernel_bench --json at several sample counts.

    python3 plot_methods.py --out methods.svg "sigma 1.5=s15_*.jsonl" "the model=model_*.jsonl"

Each argument is a column: its title and the files, a shell pattern. Needs matplotlib.
"""
import argparse
import collections
import glob
import json

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend first)

# Fixed colours and marks, whichever methods a run has.
STYLES = {
    "SANTA": ("#b0b0b0", "v"),
    "STRATIFIED": ("#8c8c8c", "^"),
    "SYSTEMATIC": ("#555555", "s"),
    "S2ANTA_FLASH": ("#e08a1e", "o"),
    "S2ANTA_PROP": ("#c9b458", "D"),
    "COORDINATED": ("#3b6ea8", "o"),
    "SKETCHED k4": ("#2a9d4b", "o"),
    "SKETCHED k4v4": ("#d1495b", "o"),
    "SKETCHED k8v8": ("#7b3fa0", "o"),
}


def read(pattern):
    """{method: [(share of EXACT's bytes, share of EXACT's time, error)]}, by bytes."""
    points = collections.defaultdict(list)
    for path in sorted(glob.glob(pattern)):
        with open(path, encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                name = line["method"]
                if name == "EXACT":
                    continue
                if name == "SKETCHED":
                    name += " " + line["sketch"]
                points[name].append((line["kv_bytes_read"] / line["dense_kv_bytes"], 1 / line["speedup_vs_exact"],
                                     line["relative_error"]))
    return {name: sorted(of_method) for name, of_method in points.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", nargs="+", help="TITLE=FILES")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", required=True, help="an .svg")
    args = parser.parse_args()

    plt.rcParams["svg.hashsalt"] = "methods"  # the same picture for the same numbers
    plt.rcParams["svg.fonttype"] = "none"
    columns = [column.split("=", 1) for column in args.columns]
    figure, axes = plt.subplots(2, len(columns), figsize=(3.5 * len(columns) + 0.4, 6.6), layout="constrained",
                                sharey="col", squeeze=False)
    names = {}
    for column, (title, pattern) in enumerate(columns):
        of_methods = read(pattern)
        for row, what in enumerate(("bytes read, of EXACT's", "time, of EXACT's")):
            plot = axes[row][column]
            for name, (colour, mark) in STYLES.items():
                points = of_methods.get(name)
                if not points:
                    continue
                (drawn,) = plot.plot([p[row] for p in points], [p[2] for p in points], color=colour, marker=mark,
                                     markersize=4.5, linewidth=1.3)
                names.setdefault(name, drawn)
            plot.axvline(1, color="#999999", linewidth=0.8, linestyle=":")
            plot.set_yscale("log")
            plot.set_xlim(left=0)
            plot.set_xlabel(what, fontsize=9)
            plot.tick_params(which="both", labelsize=8)
            plot.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
            plot.spines[["top", "right"]].set_visible(False)
            if column == 0:
                plot.set_ylabel("relative error", fontsize=9)
        axes[0][column].set_title(title, fontsize=10)
    figure.suptitle(args.title, fontsize=11)
    figure.legend([names[name] for name in STYLES if name in names], [name for name in STYLES if name in names],
                  loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()

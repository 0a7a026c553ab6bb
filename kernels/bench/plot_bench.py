#!/usr/bin/env python3
"""Plots what kernel_bench and sdpa_bench.py print as JSON lines, one shape a picture: microseconds of each method, and
the least that the read ceiling allows for the bytes that it reads.

    python3 plot_bench.py --title "(16, 32768)" --out 16x32768.svg bench_16x32768.jsonl \\
        --sdpa sdpa.jsonl --shape 16x32768

Needs matplotlib.
"""
import argparse
import json

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend first)


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help="output of kernel_bench --json")
    parser.add_argument("--sdpa", help="output of sdpa_bench.py")
    parser.add_argument("--shape", help="BATCHxTOKENS: which lines of --sdpa")
    parser.add_argument("--title", default="")
    parser.add_argument("--out", required=True, help="an .svg")
    args = parser.parse_args()

    bars = []  # name, microseconds, of which the read ceiling explains so many
    for line in read(args.bench):
        bars.append((line["method"], line["microseconds"], line["microseconds"] * line["bandwidth_ratio"]))
    if args.sdpa:
        batch, tokens = (int(part) for part in args.shape.split("x"))
        for line in read(args.sdpa):
            if (line["batch"], line["tokens"]) == (batch, tokens) and "microseconds" in line:
                bars.append((f"torch {line['backend']}", line["microseconds"], None))

    plt.rcParams["svg.hashsalt"] = "benchmarks"  # the same picture for the same numbers
    plt.rcParams["svg.fonttype"] = "none"
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(bars) + 1.3), layout="constrained")
    names = [name for name, _, _ in bars]
    colours = ["#9a9a9a" if floor is None else "#3b6ea8" for _, _, floor in bars]
    drawn = axes.barh(names, [time for _, time, _ in bars], color=colours, height=0.62)
    axes.bar_label(drawn, fmt="%.0f", padding=3, fontsize=9)
    for row, (_, _, floor) in enumerate(bars):
        if floor is not None:
            axes.plot([floor, floor], [row - 0.4, row + 0.4], color="#d1495b", linewidth=2)
    axes.plot([], [], color="#d1495b", linewidth=2, label="its bytes at the read ceiling")
    axes.invert_yaxis()
    axes.set_xlabel("microseconds, median", loc="left")
    axes.set_title(args.title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    axes.legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, -0.02), borderaxespad=1.6)
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()

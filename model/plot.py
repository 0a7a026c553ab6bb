"""Draws the loss curve of the shipped run: model/loss.png from model/train_log.jsonl."""

from __future__ import annotations

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import ScalarFormatter  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    rows = [json.loads(line) for line in (HERE / "train_log.jsonl").read_text().splitlines()]
    steps = [r["step"] for r in rows]
    figure, axes = plt.subplots(2, 1, figsize=(8, 6.4), sharex=True, constrained_layout=True)
    changes = [i for i, r in enumerate(rows) if i == 0 or r["context"] != rows[i - 1]["context"]]
    for axis in axes:
        for n, i in enumerate(changes):
            end = rows[changes[n + 1]]["step"] if n + 1 < len(changes) else rows[-1]["step"]
            start = rows[i]["step"] if i else 0
            axis.axvspan(start, end, color="0.93" if n % 2 else "0.98", lw=0)
        axis.grid(alpha=0.4, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    for n, i in enumerate(changes):
        end = rows[changes[n + 1]]["step"] if n + 1 < len(changes) else rows[-1]["step"]
        start = rows[i]["step"] if i else 0
        label = f"{rows[i]['context']:,}".replace(",", " ")
        turn = 90 if end - start < 1000 else 0
        axes[0].text((start + end) / 2, 3.6, label, ha="center", va="center", fontsize=9, rotation=turn)
    axes[0].plot(steps, [r["text_bits"] for r in rows], lw=0.9, color="#1f5fa8")
    axes[0].set_ylim(0.8, 4)
    axes[0].set_ylabel("bits per byte")
    axes[0].set_title("Everything but the answers (shaded: bytes of context)", fontsize=10, loc="left")
    axes[1].plot(steps, [max(r["answer_bits"], 1e-4) for r in rows], lw=0.9, color="#b3471d")
    axes[1].set_yscale("log")
    axes[1].set_ylabel("bits per byte")
    axes[1].set_title("Answers to planted questions", fontsize=10, loc="left")
    axes[1].set_xlabel("step (65 536 bytes each)")
    axes[1].set_xlim(0, steps[-1])
    axes[0].yaxis.set_major_formatter(ScalarFormatter())
    figure.savefig(HERE / "loss.png", dpi=110)


if __name__ == "__main__":
    main()

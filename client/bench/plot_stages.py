#!/usr/bin/env python3
"""Draws where a step's microseconds go, as an SVG, from the JSON that attention_bench prints.

    plot_stages.py --out=stages.svg "12 KiB=a.json" "192 KiB=b.json" ...

One bar for each file, named before the sign of equality: the mean of a step by stage, and where the run had an echo, the
echo's median as a mark. Needs nothing but Python.
"""

import argparse
import json
from xml.sax.saxutils import escape

STAGES = [
    ("transport_and_reply", "transport and reply", "#3b82f6"),
    ("queue", "queue", "#f59e0b"),
    ("device", "device", "#10b981"),
    ("late", "late (open loop)", "#94a3b8"),
]
LEFT, WIDTH, ROW, TOP = 190, 560, 44, 64


def text(x, y, content, size=13, anchor="start", weight="normal", fill="#1e293b"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}">{escape(content)}</text>'
    )


def nice_step(limit):
    """A round distance of at most six marks up to the limit."""
    step = 1
    while limit / step > 6:
        step *= 2.5 if str(step)[0] == "2" else 2
    return step


def draw(bars):
    limit = max(max(sum(stages.values()), echo or 0) for _, stages, echo in bars) * 1.08
    scale = WIDTH / limit
    height = TOP + ROW * len(bars) + 56
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 70} {height}" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>Where a step's time goes: means by stage</title>",
        f'<rect width="{LEFT + WIDTH + 70}" height="{height}" fill="#ffffff"/>',
    ]
    used = [stage for stage in STAGES if any(bar[1].get(stage[0], 0) >= 1 for bar in bars)]
    x = LEFT
    for _, label, colour in used:
        out.append(f'<rect x="{x}" y="18" width="14" height="14" fill="{colour}"/>')
        out.append(text(x + 20, 30, label))
        x += 40 + 7.2 * len(label)
    if any(echo for _, _, echo in bars):
        out.append(f'<line x1="{x + 4}" x2="{x + 4}" y1="15" y2="35" stroke="#dc2626" stroke-width="3"/>')
        out.append(text(x + 14, 30, "echo, p50"))
    bottom = TOP + ROW * len(bars)
    step = nice_step(limit)
    for i in range(int(limit / step) + 1):
        at = LEFT + i * step * scale
        out.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="#e2e8f0"/>')
        out.append(text(at, bottom + 18, f"{i * step:g}", 12, "middle", fill="#475569"))
    out.append(text(LEFT + WIDTH / 2, bottom + 40, "microseconds of a step, mean", 12, "middle", fill="#475569"))
    for row, (name, stages, echo) in enumerate(bars):
        y = TOP + row * ROW
        out.append(text(LEFT - 12, y + 20, name, anchor="end", weight="bold"))
        x = LEFT
        for key, _, colour in used:
            width = stages.get(key, 0) * scale
            out.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="28" fill="{colour}"/>')
            if width > 34:
                out.append(text(x + width / 2, y + 19, f"{stages[key]:.0f}", 12, "middle", fill="#ffffff"))
            x += width
        out.append(text(x + 8, y + 19, f"{sum(stages.values()):.0f}", 12, fill="#475569"))
        if echo:
            at = LEFT + echo * scale
            out.append(
                f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y - 4}" y2="{y + 32}" stroke="#dc2626" stroke-width="3"/>'
            )
    return "\n".join(out + ["</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("runs", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    bars = []
    for run in options.runs:
        name, _, path = run.partition("=")
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        echo = result.get("echo", {}).get("latency_us", {}).get("p50")
        bars.append((name, {key: max(0, value) for key, value in result["stages_us"].items()}, echo))
    with open(options.out, "w", encoding="utf-8") as file:
        file.write(draw(bars))


if __name__ == "__main__":
    main()

"""Bits per byte and recall of the shipped weights on held-out text, at several contexts.

python3 model/evaluate.py --json model/evaluation.json
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import tasks
from model import ByteLlama, Config, rope_tables

HERE = pathlib.Path(__file__).resolve().parent
TAIL = 1024
TOKENS_PER_BATCH = 131072


def load_model(folder: pathlib.Path, device: str) -> ByteLlama:
    """Loads config.json and model.safetensors; the bf16 weights are widened to float32."""
    model = ByteLlama(Config.from_hf(folder / "config.json"))
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model.to(device).eval()


@torch.no_grad()
def nats_and_hits(model: ByteLlama, rows: list[bytes], keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores rows of equal length n. Returns, for the last `keep` bytes of each, the negative log
    likelihood [rows, keep] float32 and whether the byte was the most likely one [rows, keep] bool."""
    device = next(model.parameters()).device
    n = len(rows[0])
    cos, sin = rope_tables(n - 1, model.config, device)
    out_nats, out_hits = [], []
    size = max(1, TOKENS_PER_BATCH // n)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        tokens = torch.tensor([list(r) for r in part], device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(tokens[:, :-1], cos, sin)[:, -keep:].float()
        target = tokens[:, -keep:]
        out_nats.append(F.cross_entropy(logits.transpose(1, 2), target, reduction="none").cpu())
        out_hits.append((logits.argmax(-1) == target).cpu())
    return torch.cat(out_nats), torch.cat(out_hits)


def bits(model: ByteLlama, text: bytes, context: int, longest: int) -> tuple[float, float]:
    """Bits per byte of one passage: (over whole windows of `context` bytes without overlap, over the
    last TAIL bytes of windows that end at the same places for every context)."""
    whole = [text[i : i + context] for i in range(0, len(text) - context + 1, context)]
    ends = range(longest, len(text) + 1, 2 * TAIL)
    tails = [text[e - context : e] for e in ends]
    all_bits = nats_and_hits(model, whole, context - 1)[0].mean().item() / math.log(2)
    tail_bits = nats_and_hits(model, tails, TAIL)[0].mean().item() / math.log(2)
    return all_bits, tail_bits


def recall(
    model: ByteLlama,
    texts: list[bytes],
    context: int,
    keys: int,
    seeds: int,
    build: Callable[[bytes, int, int, int], tuple[bytes, list[tasks.Item]]],
) -> tuple[int, int]:
    """Counts answers that are right in every byte (teacher-forced, which for one answer is the same as
    greedy generation). Returns (right, asked)."""
    rows, places = [], []
    for t, text in enumerate(texts):
        for seed in range(seeds):
            prompt, items = build(text, context, keys, 1000 * t + seed)
            spots = []
            for item in items:
                prompt += item.question
                spots.append((context - len(prompt), len(item.answer)))
                prompt += item.answer + item.close
            rows.append(prompt)
            places.append(spots)
    keep = max(before for spots in places for before, _ in spots)
    _, hits = nats_and_hits(model, rows, keep)
    results = [
        bool(hits[r, keep - before : keep - before + length].all())
        for r, spots in enumerate(places)
        for before, length in spots
    ]
    return sum(results), len(results)


def evaluate(model: ByteLlama, folder: pathlib.Path, contexts: list[int], keys: int, seeds: int) -> dict:
    """Runs every measurement and prints it as it comes."""
    paths = sorted(folder.glob("*.txt"))
    texts = [p.read_bytes() for p in paths]
    result: dict[str, dict] = {}
    for context in contexts:
        row: dict[str, object] = {}
        pairs = [bits(model, text, context, max(contexts)) for text in texts]
        row["bits_whole"] = {p.stem: round(a, 4) for p, (a, _) in zip(paths, pairs, strict=True)}
        row["bits_tail"] = {p.stem: round(b, 4) for p, (_, b) in zip(paths, pairs, strict=True)}
        row["mean_bits_whole"] = round(sum(a for a, _ in pairs) / len(pairs), 4)
        row["mean_bits_tail"] = round(sum(b for _, b in pairs) / len(pairs), 4)
        row["pass_keys"] = recall(model, texts, context, keys, seeds, tasks.pass_key_prompt)
        row["key_values"] = recall(model, texts, context, keys, seeds, tasks.key_value_prompt)
        result[str(context)] = row
        print(context, json.dumps(row), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=pathlib.Path, default=HERE / "weights")
    parser.add_argument("--heldout", type=pathlib.Path, default=HERE / "heldout")
    parser.add_argument("--contexts", default="2048,8192,32768")
    parser.add_argument("--keys", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=pathlib.Path, default=None)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args.weights, device)
    contexts = [int(c) for c in args.contexts.split(",")]
    result = evaluate(model, args.heldout, contexts, args.keys, args.seeds)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Writes the shipped files from a checkpoint: bf16 weights, Hugging Face config, golden logits.

python3 model/export.py --checkpoint run.pt
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

import tasks
from evaluate import load_model
from model import ByteLlama, Config, rope_tables

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN_BYTES = 384


def golden_prompt(heldout: pathlib.Path) -> bytes:
    """A prompt of GOLDEN_BYTES bytes: held-out text with one pass key, asked for and answered."""
    text = (heldout / "kjv_romans.txt").read_bytes()
    prompt, items = tasks.pass_key_prompt(text, GOLDEN_BYTES, 1, 7)
    for item in items:
        prompt += item.question + item.answer + item.close
    return prompt


@torch.no_grad()
def golden(model: ByteLlama, prompt: bytes) -> dict[str, torch.Tensor]:
    """float32 on the CPU: tokens [n] int32, logits [n, vocab], hidden.0 (embedding of the last byte) to
    hidden.L (residual stream after layer L - 1) and final_norm, each [hidden]."""
    tokens = torch.tensor(list(prompt))
    cos, sin = rope_tables(len(prompt), model.config, "cpu")
    states = model.hidden_states(tokens[None], cos, sin)
    normed = model.model.norm(states[-1])
    out = {"tokens": tokens.int(), "logits": model.lm_head(normed)[0].float().contiguous()}
    for i, state in enumerate(states):
        out[f"hidden.{i}"] = state[0, -1].float().contiguous()
    out["final_norm"] = normed[0, -1].float().contiguous()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, default=pathlib.Path("run.pt"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "weights")
    parser.add_argument("--heldout", type=pathlib.Path, default=HERE / "heldout")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)["trainer"]["model"]
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(Config().to_hf(), indent=2) + "\n")
    model = load_model(args.out, "cpu")
    save_file(golden(model, golden_prompt(args.heldout)), args.out / "golden.safetensors")
    for path in sorted(args.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

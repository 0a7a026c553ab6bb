"""Recomputes the golden logits from the shipped weights with Hugging Face's LlamaForCausalLM.

python3 model/check_logits.py         # float32 on the CPU; exits 1 above the tolerance
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=pathlib.Path, default=HERE / "weights")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference allowed")
    args = parser.parse_args()
    golden = load_file(args.weights / "golden.safetensors")
    model = LlamaForCausalLM.from_pretrained(
        args.weights, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.float()
    with torch.no_grad():
        out = model(golden["tokens"].long()[None], output_hidden_states=True)
    worst = 0.0
    pairs = {"logits": out.logits[0], "final_norm": out.hidden_states[-1][0, -1]}
    for i, state in enumerate(out.hidden_states[:-1]):  # the last one is already normed
        pairs[f"hidden.{i}"] = state[0, -1]
    for name, value in pairs.items():
        want = golden[name]
        error = ((value - want).norm() / want.norm()).item()
        largest = (value - want).abs().max().item()
        worst = max(worst, error)
        print(
            f"{name:12} shape {list(want.shape)} relative error {error:.2e} largest difference {largest:.2e}"
        )
    same = (out.logits[0].argmax(-1) == golden["logits"].argmax(-1)).float().mean().item()
    nats = torch.nn.functional.cross_entropy(out.logits[0, :-1], golden["tokens"][1:].long()).item()
    print(f"same most likely byte: {same:.4f}; bits per byte of the prompt: {nats / 0.6931471805599453:.4f}")
    sys.exit(0 if worst <= args.tolerance else 1)


if __name__ == "__main__":
    main()

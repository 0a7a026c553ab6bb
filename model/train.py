"""Trains the byte-level Llama on the corpus of data.py and writes a checkpoint and a log.

    python3 model/train.py --checkpoint run.pt --log model/train_log.jsonl

The run is a fixed number of steps per context length (`--stages`); with `--time_limit` it stops early,
saves, and the same command goes on from there. Batches depend on (seed, step) alone.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import tasks
from model import ByteLlama, Config, rope_tables

HERE = pathlib.Path(__file__).resolve().parent
TOKENS_PER_STEP = 65536
WARMUP = 100


def load_corpus(path: pathlib.Path) -> np.ndarray:
    """Returns the corpus as [bytes] uint8."""
    return np.frombuffer(lzma.decompress(path.read_bytes()), np.uint8)


def parse_stages(text: str) -> list[tuple[int, int]]:
    """'1024:500,4096:1000' -> [(context, steps), ...]."""
    return [(int(c), int(s)) for c, s in (part.split(":") for part in text.split(","))]


def context_at(step: int, stages: list[tuple[int, int]]) -> int:
    """Context length of a step."""
    for context, steps in stages:
        if step < steps:
            return context
        step -= steps
    return stages[-1][0]


class Batches(Dataset):
    """Batch number `step`, drawn from (seed, step) alone."""

    def __init__(self, corpus: np.ndarray, stages: list[tuple[int, int]], seed: int, tokens: int) -> None:
        self.corpus, self.stages, self.seed, self.tokens = corpus, stages, seed, tokens

    def __len__(self) -> int:
        return sum(steps for _, steps in self.stages)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns (tokens [batch, context + 1] uint8, weights of the targets [batch, context] float32)."""
        context = context_at(step, self.stages)
        rng = np.random.default_rng([self.seed, step])
        rows, weights = [], []
        for _ in range(max(1, self.tokens // context)):
            start = int(rng.integers(0, len(self.corpus) - context - 1))
            text = self.corpus[start : start + context + 1]
            row, weight = tasks.plant(text, context + 1, tasks.pairs_for(context, rng), rng)
            rows.append(row)
            weights.append(weight[1:])
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(weights))


class Muon:
    """Momentum with orthogonalised updates (five Newton-Schulz steps) for the matrices of the layers."""

    def __init__(self, parameters: list[Tensor], momentum: float = 0.95, decay: float = 0.01) -> None:
        self.momentum, self.decay = momentum, decay
        shapes: dict[torch.Size, list[Tensor]] = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(shapes.values())
        self.buffers = [torch.zeros_like(torch.stack([p.data for p in g])) for g in self.groups]

    @staticmethod
    def orthogonalise(g: Tensor) -> Tensor:
        """g: [k, rows, columns] -> nearly orthogonal matrices of the same shape, bf16."""
        x = g.bfloat16()
        tall = x.shape[-2] > x.shape[-1]
        if tall:
            x = x.mT
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
        return x.mT if tall else x

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of every matrix at learning rate `rate`."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            grads = torch.stack([p.grad for p in group])
            buffer.lerp_(grads, 1 - self.momentum)
            update = self.orthogonalise(grads.lerp(buffer, self.momentum)).float()
            scale = max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-rate * scale)


def progress(step: int, stages: list[tuple[int, int]]) -> float:
    """Share of the run's work done before `step`; a byte costs 1 + context / 2300, as measured."""
    done = total = 0.0
    for context, steps in stages:
        cost = 1 + context / 2300
        done += cost * min(steps, max(0, step))
        total += cost * steps
        step -= steps
    return done / total


def rate_factor(step: int, stages: list[tuple[int, int]]) -> float:
    """Linear warm-up over WARMUP steps on a cosine from 1 to 0.02 of the run's work."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress(step, stages)))
    return cosine * min(1.0, (step + 1) / WARMUP)


def head_loss(
    x: Tensor, head: torch.nn.Module, norm: torch.nn.Module, target: Tensor, weight: Tensor
) -> Tensor:
    """x: [batch, n, hidden]; target, weight: [batch, n] -> [3]: loss, text loss, answer loss (nats)."""
    logits = head(norm(x)).float().flatten(0, 1)
    nats = F.cross_entropy(logits, target.flatten(), reduction="none")
    weight = weight.flatten()
    answer = (weight > 1).float()
    loss = (nats * weight).sum() / weight.sum()
    text = (nats * (1 - answer)).sum() / (1 - answer).sum()
    return torch.stack((loss, text, (nats * answer).sum() / answer.sum().clamp(min=1)))


class Trainer:
    """Model, optimizers and the step."""

    def __init__(self, config: Config, args: argparse.Namespace, device: str) -> None:
        self.args, self.config, self.device = args, config, device
        torch.manual_seed(args.seed)
        self.model = ByteLlama(config).to(device)
        layers = [p for p in self.model.model.layers.parameters() if p.dim() == 2]
        names = {id(p) for p in layers}
        rest = [p for p in self.model.parameters() if id(p) not in names]
        self.muon = Muon(layers) if args.optimizer == "muon" else None
        groups = [{"params": [p for p in rest], "weight_decay": 0.0, "peak": args.adam_rate}]
        if self.muon is None:
            groups.append({"params": layers, "weight_decay": 0.1, "peak": args.adam_rate})
        self.adam = torch.optim.AdamW(groups, lr=args.adam_rate, betas=(0.9, 0.95), fused=device == "cuda")
        self.tables: dict[int, tuple[Tensor, Tensor]] = {}
        self.tail = head_loss
        if args.compile:
            torch._dynamo.config.recompile_limit = 64
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
            self.tail = torch.compile(head_loss, dynamic=False)

    def step(self, tokens: Tensor, weights: Tensor, factor: float) -> Tensor:
        """tokens: [batch, n + 1] uint8; weights: [batch, n]; factor: of the peak learning rates.
        Returns [3] losses on the device."""
        tokens = tokens.to(self.device, non_blocking=True).long()
        weights = weights.to(self.device, non_blocking=True)
        n = tokens.shape[1] - 1
        if n not in self.tables:
            self.tables[n] = rope_tables(n, self.config, self.device)
        cos, sin = self.tables[n]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            body = self.model.model
            x = body.embed_tokens(tokens[:, :-1])
            for layer in body.layers:
                x = layer(x, cos, sin)
            losses = self.tail(x, self.model.lm_head, body.norm, tokens[:, 1:], weights)
        losses[0].backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = group["peak"] * factor
        self.adam.step()
        if self.muon is not None:
            self.muon.step(self.args.muon_rate * factor)
        self.model.zero_grad(set_to_none=True)
        return losses.detach()

    def state(self) -> dict[str, object]:
        """Everything a later call needs to go on."""
        return {
            "model": self.model.state_dict(),
            "adam": self.adam.state_dict(),
            "muon": self.muon.buffers if self.muon else None,
        }

    def load(self, state: dict) -> None:
        """Takes back what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.adam.load_state_dict(state["adam"])
        if self.muon:
            self.muon.buffers = [b.to(self.device) for b in state["muon"]]


def arguments() -> argparse.ArgumentParser:
    """The command line; the defaults are the shipped run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=pathlib.Path, default=HERE / ".data/corpus.xz")
    parser.add_argument("--checkpoint", type=pathlib.Path, default=pathlib.Path("run.pt"))
    parser.add_argument("--log", type=pathlib.Path, default=HERE / "train_log.jsonl")
    parser.add_argument("--stages", default="1024:5600,4096:5400,16384:1200,32768:660")
    parser.add_argument("--seed", type=int, default=20261123)
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--muon_rate", type=float, default=0.02)
    parser.add_argument("--adam_rate", type=float, default=3e-3)
    parser.add_argument("--tokens_per_step", type=int, default=TOKENS_PER_STEP)
    parser.add_argument("--compile", type=int, default=1)
    parser.add_argument("--attention", choices=("flash", "cudnn", "any"), default="flash")
    parser.add_argument("--time_limit", type=float, default=1e9, help="seconds after which to save and stop")
    parser.add_argument("--stop_at", type=int, default=1 << 30, help="step at which to save and stop")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--every", type=int, default=20, help="steps between log lines")
    return parser


def choose_attention(kind: str) -> None:
    """Leaves one kernel of scaled_dot_product_attention enabled."""
    if kind == "any":
        return
    torch.backends.cuda.enable_flash_sdp(kind == "flash")
    torch.backends.cuda.enable_cudnn_sdp(kind == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def run(args: argparse.Namespace, config: Config) -> None:
    """Trains from the checkpoint (or from scratch) until the stages, the time or `stop_at` end."""
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    if device == "cuda":
        choose_attention(args.attention)
    stages = parse_stages(args.stages)
    batches = Batches(load_corpus(args.corpus), stages, args.seed, args.tokens_per_step)
    total = len(batches)
    trainer = Trainer(config, args, device)
    first, seconds = 0, 0.0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=device, weights_only=True)
        trainer.load(state["trainer"])
        first, seconds = state["step"], state["seconds"]
    print(
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters, steps {first} to {total}",
        flush=True,
    )
    end = min(total, args.stop_at)
    loader = DataLoader(
        batches, batch_size=None, sampler=range(first, end), num_workers=args.workers,
        prefetch_factor=8 if args.workers else None, pin_memory=device == "cuda",
    )  # fmt: skip
    step, sums, count, seen = first, None, 0, 0
    loop = mark = time.monotonic()
    with args.log.open("a" if first else "w") as log:
        for tokens, weights in loader:
            losses = trainer.step(tokens, weights, rate_factor(step, stages))
            sums = losses if sums is None else sums + losses
            count, seen, step = count + 1, seen + weights.numel(), step + 1
            if step % args.every == 0 or step == end:
                loss, text, answer = (sums / count).tolist()
                now = time.monotonic()
                row = {
                    "step": step,
                    "context": weights.shape[1],
                    "seconds": round(seconds + now - loop, 2),
                    "bytes_per_second": round(seen / (now - mark)),
                    "loss": round(loss, 5),
                    "text_bits": round(text / math.log(2), 5),
                    "answer_bits": round(answer / math.log(2), 5),
                }
                log.write(json.dumps(row) + "\n")
                log.flush()
                if step % (10 * args.every) == 0 or step == end:
                    print(row, flush=True)
                if not math.isfinite(loss):
                    raise SystemExit("the loss is not finite")
                sums, count, seen, mark = None, 0, 0, now
                if now - began > args.time_limit:
                    break
    seconds += time.monotonic() - loop
    torch.save(
        {"trainer": trainer.state(), "step": step, "seconds": seconds, "total": total}, args.checkpoint
    )
    print(
        f"step {step} of {total}, {seconds:.1f} s of training, {time.monotonic() - began:.1f} s in this call"
    )


if __name__ == "__main__":
    run(arguments().parse_args(), Config())

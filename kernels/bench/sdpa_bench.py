#!/usr/bin/env python3
"""Times torch's scaled-dot-product attention on the shapes that kernel_bench measures.

One query token a sequence, grouped heads (enable_gqa), contiguous keys and values. Each sample is one CUDA graph of
several calls over buffers that together exceed the L2 cache; the number is the median. One JSON object a line:
{"backend", "batch", "tokens", "microseconds"}; a backend that refuses the shape has "error" in place of the time.

    python3 sdpa_bench.py 1x32768 16x32768
"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
LEAST_BYTES = 640 << 20  # of all buffers
LEAST_CALLS = 8  # in a graph, so that its start counts for little


def microseconds(call, buffers, repetitions):
    """Median time of call(buffer), device time alone."""
    for buffer in buffers[:2]:
        call(buffer)  # chooses and loads the kernels
    torch.cuda.synchronize()
    rounds = -(-LEAST_CALLS // len(buffers))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for buffer in buffers:
                call(buffer)
    samples = []
    for repetition in range(-1, repetitions):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if repetition >= 0:
            samples.append(start.elapsed_time(end) * 1e3 / (rounds * len(buffers)))
    return statistics.median(samples)


def measure(batch, tokens, args):
    """Prints a line for each backend."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[args.dtype]
    shape = (batch, args.kv_heads, tokens, args.head_dim)
    dense_bytes = 2 * 2 * batch * args.kv_heads * tokens * args.head_dim
    count = max(2, -(-LEAST_BYTES // dense_bytes))
    buffers = [tuple(torch.randn(shape, device="cuda", dtype=dtype) for _ in range(2)) for _ in range(count)]
    # With standard normal keys the logits have the deviation of the query's elements.
    query = args.sigma * torch.randn((batch, args.query_heads, 1, args.head_dim), device="cuda", dtype=dtype)
    for name, backend in BACKENDS.items():
        line = {"backend": name, "batch": batch, "tokens": tokens}
        try:
            with sdpa_kernel(backend):
                line["microseconds"] = microseconds(
                    lambda kv: F.scaled_dot_product_attention(query, *kv, enable_gqa=True), buffers, args.repetitions
                )
        except RuntimeError as error:
            line["error"] = str(error).splitlines()[0]
        print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", metavar="BATCHxTOKENS")
    parser.add_argument("--query_heads", type=int, default=32)
    parser.add_argument("--kv_heads", type=int, default=8)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--dtype", choices=["bf16", "fp16"], default="bf16")
    parser.add_argument("--sigma", type=float, default=2, help="standard deviation of the logits")
    parser.add_argument("--repetitions", type=int, default=25)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("sdpa_bench: torch finds no GPU")
    torch.manual_seed(1)
    for shape in args.shapes:
        batch, _, tokens = shape.partition("x")
        measure(int(batch), int(tokens), args)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

"""The Llama architecture in plain PyTorch, with the tensor names of Hugging Face's LlamaForCausalLM."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape of the model; the defaults are the shipped one."""

    vocab: int = 256
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 128
    mlp: int = 768
    context: int = 32768
    rope_theta: float = 500000.0
    eps: float = 1e-5

    def to_hf(self) -> dict[str, object]:
        """This shape as a Hugging Face LlamaConfig."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.mlp,
            "max_position_embeddings": self.context,
            "mlp_bias": False,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }

    @staticmethod
    def from_hf(path: pathlib.Path) -> Config:
        """Reads a config.json written by `to_hf`."""
        raw = json.loads(path.read_text())
        return Config(
            vocab=raw["vocab_size"],
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw["num_key_value_heads"],
            head_dim=raw["head_dim"],
            mlp=raw["intermediate_size"],
            context=raw["max_position_embeddings"],
            rope_theta=raw["rope_theta"],
            eps=raw["rms_norm_eps"],
        )


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_tables(length: int, config: Config, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotate-half convention; each [length, head_dim] float32."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    inverse = config.rope_theta ** (-steps / config.head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies RoPE. x: [batch, heads, n, head_dim]; cos, sin: [n, head_dim]."""
    x32 = x.float()
    low, high = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c = config
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, n, hidden] -> [batch, n, hidden]."""
        batch, n, _ = x.shape
        d = self.config.head_dim
        q = rotate(self.q_proj(x).view(batch, n, -1, d).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(batch, n, -1, d).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(batch, n, -1, d).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, n, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, n, hidden] -> [batch, n, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers and final norm, under the name `model` as in Hugging Face's class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)


class ByteLlama(nn.Module):
    """Byte-level Llama. Token ids are bytes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            scale = 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                scale /= (2 * config.layers) ** 0.5
            nn.init.normal_(parameter, std=scale)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.5)

    def hidden_states(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        """tokens: [batch, n] int64 -> [batch, n, hidden] each: embedding, then after each layer."""
        states = [self.model.embed_tokens(tokens)]
        for layer in self.model.layers:
            states.append(layer(states[-1], cos, sin))
        return states

    def forward(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """tokens: [batch, n] int64; cos, sin: [n, head_dim] -> logits [batch, n, vocab]."""
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.model.norm(x))

"""A GPT with three mistakes, found one after the other: each check names the first that is left.

python examples/gpt_three_mistakes.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import parity

VOCABULARY, LENGTH, WIDTH, HEADS, DEPTH = 29, 7, 24, 3, 2


class TorchBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).flatten(2))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class TorchGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList(TorchBlock() for _ in range(DEPTH))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


@dataclass(frozen=True)
class Port:
    """What the port does at three places; these are the mistakes."""

    epsilon: float = 1e-6  # Flax's default; PyTorch's is 1e-5
    root: float = 1.0  # the scores are divided by the depth of a head to this power
    approximate: bool = True  # Flax's default GELU


class Block(nnx.Module):
    def __init__(self, port: Port, rngs: nnx.Rngs) -> None:
        self.ln_1, self.ln_2 = (nnx.LayerNorm(WIDTH, epsilon=port.epsilon, rngs=rngs) for _ in range(2))
        self.c_attn, self.c_proj = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.fc, self.proj = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.port = port

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(self.c_attn(self.ln_1(x)), 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** self.port.root
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        attended = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(scores), v)
        x = x + self.c_proj(attended.reshape(x.shape))
        return x + self.proj(nnx.gelu(self.fc(self.ln_2(x)), approximate=self.port.approximate))


class GPT(nnx.Module):
    def __init__(self, port: Port, rngs: nnx.Rngs) -> None:
        self.wte, self.wpe = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.h = nnx.List([Block(port, rngs) for _ in range(DEPTH)])
        self.ln_f = nnx.LayerNorm(WIDTH, epsilon=port.epsilon, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


def main() -> None:
    torch.manual_seed(0)
    torch_model = TorchGPT()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
    port = Port()
    for mended in ({"epsilon": 1e-5}, {"root": 0.5}, {"approximate": False}, {}):
        model = parity.move(torch_model, GPT(port, nnx.Rngs(0)), tokens)
        report = parity.check(torch_model, model, tokens, steps=1)
        for finding in report.models[0].findings[:1]:
            print(f"{finding.layer} [{finding.trap}]: {finding.text}")
            print(f"  mended with {mended}\n")
        port = replace(port, **mended)
    print(f"parity: {report.ok}")


if __name__ == "__main__":
    main()

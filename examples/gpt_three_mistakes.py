# %% [markdown]
# # A GPT with three mistakes
#
# The port of a small GPT has three mistakes. Each check names the first that is left, and the port is mended.
#
#     python examples/gpt_three_mistakes.py

# %%
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

# %% [markdown]
# The reference in PyTorch.


# %%
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


# %% [markdown]
# The port in Flax NNX. `Mistakes` gathers what it does otherwise, so that each can be mended below.


# %%
@dataclass(frozen=True)
class Mistakes:
    epsilon: float = 1e-6  # Flax's default; PyTorch's is 1e-5
    root: float = 1.0  # the scores are divided by the depth of a head to this power
    approximate: bool = True  # Flax's default GELU


class Block(nnx.Module):
    def __init__(self, has: Mistakes, rngs: nnx.Rngs) -> None:
        self.ln_1, self.ln_2 = (nnx.LayerNorm(WIDTH, epsilon=has.epsilon, rngs=rngs) for _ in range(2))
        self.c_attn, self.c_proj = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.fc, self.proj = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)
        self.has = has

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in jnp.split(self.c_attn(self.ln_1(x)), 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** self.has.root
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        attended = jnp.einsum("bhqk,bkhd->bqhd", nnx.softmax(scores), v)
        x = x + self.c_proj(attended.reshape(x.shape))
        return x + self.proj(nnx.gelu(self.fc(self.ln_2(x)), approximate=self.has.approximate))


class GPT(nnx.Module):
    def __init__(self, has: Mistakes, rngs: nnx.Rngs) -> None:
        self.wte, self.wpe = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.h = nnx.List([Block(has, rngs) for _ in range(DEPTH)])
        self.ln_f = nnx.LayerNorm(WIDTH, epsilon=has.epsilon, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


# %% [markdown]
# `first_finding` checks the port and shows the first finding: the layer, the name of the mistake, and how to mend it.

# %%
torch.manual_seed(0)
torch_model = TorchGPT()
tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH))
mistakes = Mistakes()


def first_finding() -> None:
    model = parity.move(torch_model, GPT(mistakes, nnx.Rngs(0)), tokens)
    report = parity.check(torch_model, model, tokens, steps=1)
    print(f"parity: {report.ok}")
    for finding in report.models[0].findings[:1]:
        print(f"{finding.layer} [{finding.trap}]: {finding.text}")


first_finding()

# %% [markdown]
# Mend the norms: `epsilon=1e-5`.

# %%
mistakes = replace(mistakes, epsilon=1e-5)
first_finding()

# %% [markdown]
# Mend the attention: the scores are divided by the root of a head's depth.

# %%
mistakes = replace(mistakes, root=0.5)
first_finding()

# %% [markdown]
# Mend the GELU: `approximate=False`.

# %%
mistakes = replace(mistakes, approximate=False)
first_finding()

# %% [raw]
# It prints:
#
#     parity: False
#     h.0.ln_1 [norm-epsilon-1e-6]: epsilon is 1e-6, which is Flax's default; pass epsilon explicitly, as PyTorch's
#       layer has it
#     parity: False
#     h.0 [attention-scaled-twice]: between h.0.c_attn and h.0.c_proj: the scores are scaled twice; scale the queries
#       or the scores, not both
#     parity: False
#     h.0 [gelu-tanh]: between h.0.fc and h.0.proj: GELU's other form: Flax's default is the tanh approximation,
#       PyTorch's the error function; pass approximate=False, or True for PyTorch's approximate='tanh'
#     parity: True

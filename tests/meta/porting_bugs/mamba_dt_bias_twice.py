"""mlx-lm's fused Mamba adds the bias of the time step twice: in its linear layer and before the softplus.

Source: ml-explore/mlx-lm#1153.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from . import Bug
from .inputs import tokens

VOCABULARY, WIDTH, INNER, STATE, RANK, KERNEL = 20, 8, 16, 4, 2, 4


class MambaMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv1d = nn.Conv1d(INNER, INNER, KERNEL, groups=INNER, padding=KERNEL - 1)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(RANK, INNER)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, STATE + 1).float().repeat(INNER, 1)))
        self.D = nn.Parameter(torch.ones(INNER))
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, gate = self.in_proj(x).chunk(2, -1)
        x = nn.functional.silu(self.conv1d(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, b, c = self.x_proj(x).split([RANK, STATE, STATE], -1)
        step = nn.functional.softplus(self.dt_proj(step))
        decay = torch.exp(step[..., None] * -torch.exp(self.A_log))
        driven = (step * x)[..., None] * b[:, :, None]
        state, outputs = torch.zeros_like(driven[:, 0]), []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + driven[:, i]
            outputs.append((state * c[:, i, None]).sum(-1))
        return self.out_proj((torch.stack(outputs, 1) + x * self.D) * nn.functional.silu(gate))


class MambaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(WIDTH), MambaMixer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mixer(self.norm(x))


class Torch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(MambaBlock() for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class FlaxMambaMixer(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.in_proj = nnx.Linear(WIDTH, 2 * INNER, use_bias=False, rngs=rngs)
        self.conv1d = nnx.Conv(INNER, INNER, (KERNEL,), padding=[(KERNEL - 1, 0)], feature_group_count=INNER, rngs=rngs)
        self.x_proj = nnx.Linear(INNER, RANK + 2 * STATE, use_bias=False, rngs=rngs)
        self.dt_proj = nnx.Linear(RANK, INNER, rngs=rngs)
        self.A_log = nnx.Param(jnp.zeros((INNER, STATE)))
        self.D = nnx.Param(jnp.ones(INNER))
        self.out_proj = nnx.Linear(INNER, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, gate = jnp.split(self.in_proj(x), 2, -1)
        x = nnx.silu(self.conv1d(x))
        step, b, c = jnp.split(self.x_proj(x), [RANK, RANK + STATE], -1)
        step = self.dt_proj(step)
        if self.wrong:
            assert self.dt_proj.bias is not None
            step = step + self.dt_proj.bias[...]
        step = nnx.softplus(step)
        decay = jnp.exp(step[..., None] * -jnp.exp(self.A_log[...]))
        driven = (step * x)[..., None] * b[:, :, None]
        state, outputs = jnp.zeros_like(driven[:, 0]), []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + driven[:, i]
            outputs.append((state * c[:, i, None]).sum(-1))
        return self.out_proj((jnp.stack(outputs, 1) + x * self.D[...]) * nnx.silu(gate))


class FlaxMambaBlock(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.norm, self.mixer = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs), FlaxMambaMixer(wrong, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.mixer(self.norm(x))


class Port(nnx.Module):
    def __init__(self, wrong: bool) -> None:
        rngs = nnx.Rngs(0)
        self.embeddings = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([FlaxMambaBlock(wrong, rngs) for _ in range(2)])
        self.lm_head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


BUG = Bug(
    source="ml-explore/mlx-lm#1153",
    what="The bias of the time step's projection is added again before the softplus.",
    torch=Torch,
    port=Port,
    inputs=lambda: (tokens(VOCABULARY, 2, 6),),
    layer="layers.0.mixer.dt_proj",
    named=r"bias.*(twice|two times|double|again|second)|(twice|double|again|second|2 ?[x*]).*bias",
    kind="recurrent",
    blind=True,
    trap_added=True,
)

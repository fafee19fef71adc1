"""Blocks of dense layers: MLPs, gated ones, mixers over positions, soft experts, a scaled sum of products."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

from .block import ANY, IMAGE, SEQUENCE, VECTOR, Block, in_linen
from .choices import Choices

EXPERTS = 3


class TorchMlp(nn.Module):
    """Up, activation, dropout, down."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(s.width, s.hidden, bias=s.bias), s.torch_act
        self.drop, self.fc2 = nn.Dropout(s.rate), nn.Linear(s.hidden, s.width, bias=s.bias)

    def forward(self, x: Any) -> Any:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class NnxMlp(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(s.width, s.hidden, use_bias=s.bias, rngs=rngs)
        self.fc2 = nnx.Linear(s.hidden, s.width, use_bias=s.bias, rngs=rngs)
        self.drop, self.act = nnx.Dropout(s.rate, rngs=rngs), s.jax_act

    def __call__(self, x: Any) -> Any:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class LinenMlp(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = self.s.jax_act(linen.Dense(self.s.hidden, use_bias=self.s.bias, name="fc1")(x))
        x = linen.Dropout(self.s.rate, deterministic=not train)(x)
        return linen.Dense(self.s.width, use_bias=self.s.bias, name="fc2")(x)


class TorchNormed(nn.Module):
    """Linear, BatchNorm, activation, linear: as most MLPs for tables are written."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(s.width, s.hidden, bias=False),
            nn.BatchNorm1d(s.hidden, eps=s.epsilon),
            nn.Dropout(s.rate),
            nn.Linear(s.hidden, s.width),
        )
        self.act = s.torch_act

    def forward(self, x: Any) -> Any:
        return self.act(self.layers(x))


class NnxNormed(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.fc1 = nnx.Linear(s.width, s.hidden, use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(s.hidden, momentum=0.9, epsilon=s.epsilon, rngs=rngs)
        self.drop, self.act = nnx.Dropout(s.rate, rngs=rngs), s.jax_act
        self.fc2 = nnx.Linear(s.hidden, s.width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.act(self.fc2(self.drop(self.bn(self.fc1(x)))))


class LinenNormed(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = linen.Dense(self.s.hidden, use_bias=False)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=self.s.epsilon)(x)
        x = linen.Dropout(self.s.rate)(x, deterministic=not train)
        return self.s.jax_act(linen.Dense(self.s.width)(x))


class TorchGated(nn.Module):
    """A gated MLP, as in Llama; fused, gate and value are one projection."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        if s.fused[0]:
            self.gate_up_proj = nn.Linear(s.width, 2 * s.hidden, bias=s.bias)
        else:
            self.gate_proj = nn.Linear(s.width, s.hidden, bias=s.bias)
            self.up_proj = nn.Linear(s.width, s.hidden, bias=s.bias)
        self.down_proj, self.act, self.s = nn.Linear(s.hidden, s.width, bias=s.bias), s.torch_act, s

    def forward(self, x: Any) -> Any:
        gate, up = self.gate_up_proj(x).chunk(2, -1) if self.s.fused[0] else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(self.act(gate) * up)


class NnxGated(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        if s.fused[1]:
            self.gate_up_proj = nnx.Linear(s.width, 2 * s.hidden, use_bias=s.bias, rngs=rngs)
        else:
            self.gate_proj = nnx.Linear(s.width, s.hidden, use_bias=s.bias, rngs=rngs)
            self.up_proj = nnx.Linear(s.width, s.hidden, use_bias=s.bias, rngs=rngs)
        self.down_proj, self.s = nnx.Linear(s.hidden, s.width, use_bias=s.bias, rngs=rngs), s

    def __call__(self, x: Any) -> Any:
        fused = self.s.fused[1]
        gate, up = jnp.split(self.gate_up_proj(x), 2, -1) if fused else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(self.s.jax_act(gate) * up)


class LinenGated(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s = self.s
        if s.fused[1]:
            gate, up = jnp.split(linen.Dense(2 * s.hidden, use_bias=s.bias, name="gate_up_proj")(x), 2, -1)
        else:
            gate, up = (linen.Dense(s.hidden, use_bias=s.bias, name=name)(x) for name in ("gate_proj", "up_proj"))
        return linen.Dense(s.width, use_bias=s.bias, name="down_proj")(s.jax_act(gate) * up)


class TorchMixer(nn.Module):
    """An MLP over the positions of a sequence, as in MLP-Mixer."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(s.shape.length, s.hidden), nn.Linear(s.hidden, s.shape.length)
        self.act = s.torch_act

    def forward(self, x: Any) -> Any:
        return self.down(self.act(self.up(x.transpose(1, 2)))).transpose(1, 2)


class NnxMixer(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(s.shape.length, s.hidden, rngs=rngs)
        self.down, self.act = nnx.Linear(s.hidden, s.shape.length, rngs=rngs), s.jax_act

    def __call__(self, x: Any) -> Any:
        return self.down(self.act(self.up(x.swapaxes(1, 2)))).swapaxes(1, 2)


class LinenMixer(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = self.s.jax_act(linen.Dense(self.s.hidden, name="up")(x.swapaxes(1, 2)))
        return linen.Dense(self.s.shape.length, name="down")(x).swapaxes(1, 2)


class TorchExperts(nn.Module):
    """Soft experts, whose weights are one tensor each; the router may be float32."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.router, self.act, self.s = nn.Linear(s.width, EXPERTS, bias=False), s.torch_act, s
        self.w_in = nn.Parameter(torch.randn(EXPERTS, s.width, s.hidden) * 0.4)
        self.w_out = nn.Parameter(torch.randn(EXPERTS, s.hidden, s.width) * 0.4)

    def forward(self, x: Any) -> Any:
        scores = self.router(x)
        gates = scores.softmax(-1, dtype=torch.float32).to(x.dtype) if self.s.pinned[0] else scores.softmax(-1)
        y = torch.einsum("...eh,ehd->...ed", self.act(torch.einsum("...d,edh->...eh", x, self.w_in)), self.w_out)
        return torch.einsum("...e,...ed->...d", gates, y)


class NnxExperts(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.router, self.s = nnx.Linear(s.width, EXPERTS, use_bias=False, rngs=rngs), s
        self.w_in = nnx.Param(jnp.zeros((EXPERTS, s.width, s.hidden)))
        self.w_out = nnx.Param(jnp.zeros((EXPERTS, s.hidden, s.width)))

    def __call__(self, x: Any) -> Any:
        return jax_experts(x, self.router(x), self.w_in[...], self.w_out[...], self.s)


class LinenExperts(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        s, normal = self.s, linen.initializers.normal()
        w_in = self.param("w_in", normal, (EXPERTS, s.width, s.hidden))
        w_out = self.param("w_out", normal, (EXPERTS, s.hidden, s.width))
        return jax_experts(x, linen.Dense(EXPERTS, use_bias=False, name="router")(x), w_in, w_out, s)


def jax_experts(x: Any, scores: Any, w_in: Any, w_out: Any, s: Choices) -> Any:
    gates = jax.nn.softmax(scores.astype(jnp.float32) if s.pinned[1] else scores, -1).astype(x.dtype)
    y = jnp.einsum("...eh,ehd->...ed", s.jax_act(jnp.einsum("...d,edh->...eh", x, w_in)), w_out)
    return (y * gates[..., None]).sum(-2)


class TorchExcite(nn.Module):
    """Squeeze and excite: channels are scaled by what their means tell."""

    def __init__(self, s: Choices) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Conv2d(s.width, s.hidden, 1), s.torch_act, nn.Conv2d(s.hidden, s.width, 1)

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class NnxExcite(nnx.Module):
    def __init__(self, s: Choices, rngs: nnx.Rngs) -> None:
        self.fc1, self.act = nnx.Conv(s.width, s.hidden, (1, 1), rngs=rngs), s.jax_act
        self.fc2 = nnx.Conv(s.hidden, s.width, (1, 1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x * jax.nn.sigmoid(self.fc2(self.act(self.fc1(x.mean((1, 2), keepdims=True)))))


class LinenExcite(linen.Module):
    s: Choices

    @linen.compact
    def __call__(self, x: Any, train: bool) -> Any:
        y = self.s.jax_act(linen.Conv(self.s.hidden, (1, 1), name="fc1")(x.mean((1, 2), keepdims=True)))
        return x * jax.nn.sigmoid(linen.Conv(self.s.width, (1, 1), name="fc2")(y))


FLAT = ANY - IMAGE
DENSE: dict[str, Block] = {
    "mlp": Block(TorchMlp, NnxMlp, in_linen(LinenMlp), FLAT),
    "mlp with batch norm": Block(TorchNormed, NnxNormed, in_linen(LinenNormed), VECTOR),
    "gated mlp": Block(TorchGated, NnxGated, in_linen(LinenGated), FLAT),
    "mixer": Block(TorchMixer, NnxMixer, in_linen(LinenMixer), SEQUENCE, whole_length=True),
    "experts": Block(TorchExperts, NnxExperts, in_linen(LinenExperts), FLAT),
    "squeeze and excite": Block(TorchExcite, NnxExcite, in_linen(LinenExcite), IMAGE),
}

"""Decoders of Llama's kind as data: one frozen `LlamaSpec` per network, for all three ports. No framework is imported.

A pre-norm decoder with RMSNorm, rotary positions, queries that share keys and values in groups, and a gated MLP. The
names and numbers come from transformers.

Sources: Touvron et al. 2023, "LLaMA"; Su et al. 2021, "RoFormer" (rotary positions); Ainslie et al. 2023, "GQA";
Shazeer 2020, "GLU Variants Improve Transformer"; transformers' modeling_llama.py, modeling_qwen2.py and
modeling_rope_utils.py (Llama 3's scaling).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ports.errors import UserError, require_positive
from ports.family import Layer, Shape


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of slow rotations, for texts that are longer than those of its first training.

    Attributes:
        factor: the divisor of rotations slower than `length / low`.
        low, high: turns within `length` tokens; rotations with more than `high` turns stay as they are, and between the
            two the change grows smoothly.
        length: the longest text of the first training, in tokens.
    """

    factor: float = 32.0
    low: float = 1.0
    high: float = 4.0
    length: int = 8192


@dataclass(frozen=True)
class LlamaSpec:
    """One decoder.

    Attributes:
        vocabulary: number of different tokens.
        width: features of a token.
        heads: of attention; groups of them share one of the `kv_heads` of keys and values.
        hidden: features between the linear layers of the gated MLP.
        depth: number of blocks.
        theta: base of the rotations' speeds.
        scaling: of the speeds; None for none.
        epsilon: of RMSNorm.
        bias: whether the linear layers of queries, keys and values have biases.
        tied: whether the output layer has the weights of the embedding.
        stacked: the Flax ports keep each weight of all blocks in one array with an additional axis, and run the blocks
            with `scan`, so that the program is as short as that of one block. The PyTorch port does not change.
        source: where the network was published.
    """

    name: str
    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    depth: int
    theta: float = 10000.0
    scaling: RopeScaling | None = None
    epsilon: float = 1e-5
    bias: bool = False
    tied: bool = True
    stacked: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        names = ("vocabulary", "width", "heads", "kv_heads", "hidden", "depth")
        require_positive(f"{self.name}: ", **{name: getattr(self, name) for name in names})
        if self.width % self.heads:
            raise UserError(f"{self.name}: width: got {self.width} for {self.heads} heads, expected a multiple")
        if self.heads % self.kv_heads:
            got = f"got {self.heads} for {self.kv_heads} of keys and values"
            raise UserError(f"{self.name}: heads: {got}, expected a multiple")
        if self.head_width % 2:
            raise UserError(f"{self.name}: width: got {self.head_width} features a head, expected an even number")

    @property
    def number_of_blocks(self) -> int:
        return self.depth

    @property
    def num_classes(self) -> int:
        """A token is classified as the one that follows it."""
        return self.vocabulary

    @property
    def head_width(self) -> int:
        """Features of a head: rotations turn pairs of them."""
        return self.width // self.heads

    def frequencies(self) -> tuple[float, ...]:
        """Return the angle by which each pair of features turns from one token to the next."""
        half = self.head_width // 2
        return tuple(_scaled(self.theta ** (-i / half), self.scaling) for i in range(half))


def _scaled(frequency: float, scaling: RopeScaling | None) -> float:
    """Return a rotation's speed after Llama 3's scaling."""
    if scaling is None:
        return frequency
    turns = scaling.length * frequency / (2 * math.pi)
    kept = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
    return kept * frequency + (1 - kept) * frequency / scaling.factor


def layers(spec: LlamaSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    width = spec.width
    embedding: dict[str, Shape] = {"weight": (spec.vocabulary, width)}
    yield Layer("embed_tokens", "model.embed_tokens", "embedding", embedding)
    for i in range(spec.depth):
        for layer in _block(spec, i):
            yield replace(layer, stack=spec.depth)
    yield Layer("norm", "model.norm", "rms_norm", {"weight": (width,)})
    if spec.tied:
        yield Layer("lm_head", "lm_head", "embedding", embedding, tied="model.embed_tokens")
    else:
        yield Layer("lm_head", "lm_head", "linear", embedding)


def _block(spec: LlamaSpec, i: int) -> Iterator[Layer]:
    width, keys = spec.width, spec.kv_heads * spec.head_width
    yield _linear("self_attn.q_proj", i, (width, width), spec.bias)
    yield _linear("self_attn.k_proj", i, (keys, width), spec.bias)
    yield _linear("self_attn.v_proj", i, (keys, width), spec.bias)
    yield _linear("self_attn.o_proj", i, (width, width))
    yield _linear("mlp.gate_proj", i, (spec.hidden, width))
    yield _linear("mlp.up_proj", i, (spec.hidden, width))
    yield _linear("mlp.down_proj", i, (width, spec.hidden))
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield Layer(norm, f"model.layers.{i}.{norm}", "rms_norm", {"weight": (width,)}, keys=(str(i),))


def _linear(role: str, block: int, shape: Shape, bias: bool = False) -> Layer:
    shapes = {"weight": shape} | ({"bias": shape[:1]} if bias else {})
    return Layer(role, f"model.layers.{block}.{role}", "linear", shapes, keys=(str(block),))

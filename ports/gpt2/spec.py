"""GPT-2 as data: one frozen `GPT2Spec` per network, read by all three ports. No framework is imported.

A pre-norm decoder of tokens with learned positions, whose output layer has the weights of the embedding. The names and
numbers come from transformers. There is no dropout: transformers' class has it in train mode.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (table 2); transformers'
modeling_gpt2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ports.errors import UserError, require_positive
from ports.family import Layer, Shape


@dataclass(frozen=True)
class GPT2Spec:
    """One decoder.

    Attributes:
        width: features of a token; `heads` of attention share them.
        depth: number of blocks.
        vocabulary: number of different tokens.
        length: the longest text, in tokens.
        stacked: the Flax ports keep each weight of all blocks in one array with an additional axis, and run the blocks
            with `scan`, so that the program is as short as that of one block. The PyTorch port does not change.
        source: where the network was published.
    """

    name: str
    width: int
    heads: int
    depth: int
    vocabulary: int = 50257
    length: int = 1024
    stacked: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("width", "heads", "depth", "vocabulary", "length")}
        require_positive(f"{self.name}: ", **sizes)
        if self.width % self.heads:
            raise UserError(f"{self.name}: width: got {self.width} for {self.heads} heads, expected a multiple")

    @property
    def number_of_blocks(self) -> int:
        return self.depth

    @property
    def num_classes(self) -> int:
        """A token is classified as the one that follows it."""
        return self.vocabulary

    @property
    def hidden(self) -> int:
        """Features between the two linear layers of a block."""
        return 4 * self.width


def layers(spec: GPT2Spec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    width, embedding = spec.width, {"weight": (spec.vocabulary, spec.width)}
    yield Layer("wte", "transformer.wte", "embedding", embedding)
    yield Layer("wpe", "transformer.wpe", "embedding", {"weight": (spec.length, width)})
    for i in range(spec.depth):
        for layer in (
            _norm("ln_1", f"transformer.h.{i}.ln_1", width, i),
            _linear("attn.c_attn", i, (width, 3 * width)),
            _linear("attn.c_proj", i, (width, width)),
            _norm("ln_2", f"transformer.h.{i}.ln_2", width, i),
            _linear("mlp.c_fc", i, (width, spec.hidden)),
            _linear("mlp.c_proj", i, (spec.hidden, width)),
        ):
            yield replace(layer, stack=spec.depth)
    yield _norm("ln_f", "transformer.ln_f", width)
    yield Layer("lm_head", "lm_head", "embedding", embedding, tied="transformer.wte")


def _norm(role: str, name: str, width: int, block: int = 0) -> Layer:
    shapes: dict[str, Shape] = {"weight": (width,), "bias": (width,)}
    return Layer(role, name, "layer_norm", shapes, {"block": block}, keys=(str(block),))


def _linear(role: str, block: int, shape: Shape) -> Layer:
    shapes = {"weight": shape, "bias": shape[1:]}
    return Layer(role, f"transformer.h.{block}.{role}", "conv1d", shapes, {"block": block}, keys=(str(block),))

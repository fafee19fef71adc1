"""Transformers as data: one frozen `EncoderSpec` per network, read by all three ports. No framework is imported.

A pre-norm encoder of tokens with learned positions, whose outputs are averaged and classified.

Sources: Vaswani et al. 2017, "Attention Is All You Need"; Xiong et al. 2020, "On Layer Normalization in the Transformer
Architecture" (figure 1b: the norm comes first).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ports.errors import UserError, require_positive
from ports.family import Layer, linear_layer


@dataclass(frozen=True)
class EncoderSpec:
    """One encoder.

    Attributes:
        vocabulary: number of different tokens.
        length: the longest text, in tokens.
        width: features of a token; `heads` of attention share them.
        hidden: features between the two linear layers of a block.
        depth: number of blocks.
        source: where the network was published.
    """

    name: str
    vocabulary: int
    length: int
    width: int
    heads: int
    hidden: int
    depth: int
    num_classes: int
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("vocabulary", "length", "width", "heads", "hidden", "depth")}
        require_positive(f"{self.name}: ", **sizes, num_classes=self.num_classes)
        if self.width % self.heads:
            raise UserError(f"{self.name}: width: got {self.width} for {self.heads} heads, expected a multiple")

    @property
    def number_of_blocks(self) -> int:
        return self.depth


def layers(spec: EncoderSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    width, heads = spec.width, (("num_heads", spec.heads),)
    yield Layer("tokens", "tokens", "embedding", {"weight": (spec.vocabulary, width)})
    yield Layer("positions", "positions", "embedding", {"weight": (spec.length, width)})
    for i in range(spec.depth):
        at = f"blocks.{i}"
        yield _norm("norm1", f"{at}.norm1", width)
        shapes = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
        shapes |= {"out_proj.weight": (width, width), "out_proj.bias": (width,)}
        yield Layer("attention", f"{at}.attention", "attention", shapes, options=heads)
        yield _norm("norm2", f"{at}.norm2", width)
        yield linear_layer("linear1", f"{at}.linear1", width, spec.hidden)
        yield linear_layer("linear2", f"{at}.linear2", spec.hidden, width)
    yield _norm("norm", "norm", width)
    yield linear_layer("head", "head", width, spec.num_classes)


def _norm(role: str, name: str, width: int) -> Layer:
    return Layer(role, name, "layer_norm", {"weight": (width,), "bias": (width,)})

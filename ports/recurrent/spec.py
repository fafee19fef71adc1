"""Recurrent networks as data: one frozen `RecurrentSpec` each, read by all three ports. No framework is imported.

The encoder of Wu et al. 2016, "Google's Neural Machine Translation System": a bidirectional layer, one that takes both
directions, and layers whose inputs are added to their outputs (section 3.2; figure 2: from the third layer on). The
output of the last layer is averaged over the tokens of a text and classified. Padding comes after a text, and changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ports.errors import UserError, require_positive
from ports.family import Layer, Shape, linear_layer

PADDING = 0
"""The token that follows a text."""

GATES = {"lstm": 4, "gru": 3}
"""How many gates each kind of layer has."""


@dataclass(frozen=True)
class RecurrentSpec:
    """One stack of recurrent layers.

    Attributes:
        cell: of the layers, `lstm` or `gru`.
        vocabulary: number of different tokens, padding (0) among them.
        width: features of a token, and of each direction of a layer.
        depth: number of layers; the first reads in both directions.
        residual: whether, from the third layer on, a layer's input is added to its output. False gives the plain stack.
        source: where the network was published.
    """

    name: str
    cell: str
    vocabulary: int
    width: int
    depth: int
    num_classes: int
    residual: bool = True
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("vocabulary", "width", "num_classes")}
        require_positive(f"{self.name}: ", **sizes)
        if self.cell not in GATES:
            raise UserError(f"{self.name}: cell: got {self.cell!r}, expected one of {', '.join(GATES)}")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 2:
            raise UserError(f"{self.name}: depth: got {self.depth!r}, expected a whole number, 2 or more")

    @property
    def number_of_blocks(self) -> int:
        return self.depth


def layers(spec: RecurrentSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    width = spec.width
    yield Layer("tokens", "tokens", "embedding", {"weight": (spec.vocabulary, width)})
    yield _recurrent("first", "first", spec, width, bidirectional=True)
    yield _recurrent("second", "second", spec, 2 * width)
    for i in range(spec.depth - 2):
        yield _recurrent("layers", f"layers.{i}", spec, width, keys=(str(i),))
    yield linear_layer("head", "head", width, spec.num_classes)


def _recurrent(
    role: str, name: str, spec: RecurrentSpec, inputs: int, *, bidirectional: bool = False, keys: tuple[str, ...] = ()
) -> Layer:
    rows, shapes = GATES[spec.cell] * spec.width, dict[str, Shape]()
    for end in ("l0", "l0_reverse") if bidirectional else ("l0",):
        shapes |= {f"weight_ih_{end}": (rows, inputs), f"weight_hh_{end}": (rows, spec.width)}
        shapes |= {f"bias_ih_{end}": (rows,), f"bias_hh_{end}": (rows,)}
    return Layer(role, name, f"{spec.cell}_layer", shapes, keys=keys)

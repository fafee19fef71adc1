"""Vision Transformers as data: one frozen `ViTSpec` per network, read by all three ports. No framework is imported.

An image is cut into square patches. A class token precedes them, a pre-norm encoder takes all tokens, and a linear
layer classifies the encoder's output for the class token. The names and numbers come from torchvision.

Sources: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (table 1); torchvision's vision_transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ports.errors import UserError, require_positive
from ports.family import Layer, linear_layer


@dataclass(frozen=True)
class ViTSpec:
    """One Vision Transformer.

    Attributes:
        patch_size: height and width of a patch, in pixels.
        width: features of a patch; `heads` of attention share them.
        hidden: features between the two linear layers of a block.
        depth: number of blocks.
        input_size: height and width of an image, in pixels: patches must divide it without a remainder.
        source: where the network was published.
    """

    name: str
    patch_size: int
    width: int
    heads: int
    hidden: int
    depth: int
    num_classes: int = 1000
    in_channels: int = 3
    input_size: int = 224
    source: str = ""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("patch_size", "width", "heads", "hidden", "depth")}
        require_positive(f"{self.name}: ", **sizes, num_classes=self.num_classes, in_channels=self.in_channels)
        require_positive(f"{self.name}: ", input_size=self.input_size)
        if self.width % self.heads:
            raise UserError(f"{self.name}: width: got {self.width} for {self.heads} heads, expected a multiple")
        if self.input_size % self.patch_size:
            got = f"got {self.input_size} pixels for patches of {self.patch_size}"
            raise UserError(f"{self.name}: input_size: {got}, expected a multiple")

    @property
    def number_of_blocks(self) -> int:
        return self.depth

    @property
    def length(self) -> int:
        """How many tokens the encoder gets: the class token and the patches."""
        return 1 + (self.input_size // self.patch_size) ** 2


def layers(spec: ViTSpec) -> Iterator[Layer]:
    """Yield the layers with tensors under their PyTorch names, in the order of PyTorch's state_dict."""
    width, patch, heads = spec.width, spec.patch_size, (("num_heads", spec.heads),)
    yield Layer("class_token", "class_token", "tensor", {"": (1, 1, width)})
    shapes = {"weight": (width, spec.in_channels, patch, patch), "bias": (width,)}
    yield Layer("conv_proj", "conv_proj", "conv", shapes)
    yield Layer("pos_embedding", "encoder.pos_embedding", "tensor", {"": (1, spec.length, width)})
    for i in range(spec.depth):
        key = f"encoder_layer_{i}"
        at, keys = f"encoder.layers.{key}", (key,)
        yield _norm("ln_1", f"{at}.ln_1", width, keys)
        shapes = {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)}
        shapes |= {"out_proj.weight": (width, width), "out_proj.bias": (width,)}
        yield Layer("self_attention", f"{at}.self_attention", "attention", shapes, options=heads, keys=keys)
        yield _norm("ln_2", f"{at}.ln_2", width, keys)
        yield linear_layer("mlp", f"{at}.mlp.0", width, spec.hidden, keys=keys)
        yield linear_layer("mlp", f"{at}.mlp.3", spec.hidden, width, keys=keys)
    yield _norm("ln", "encoder.ln", width)
    yield linear_layer("head", "heads.head", width, spec.num_classes, keys=("head",))


def _norm(role: str, name: str, width: int, keys: tuple[str, ...] = ()) -> Layer:
    return Layer(role, name, "layer_norm", {"weight": (width,), "bias": (width,)}, keys=keys)

"""The port adds the branch to what comes out of the norm; PyTorch's model adds it to what goes in.

Source: SHI-Labs/Compact-Transformers#25.
"""

from __future__ import annotations

import jax
from flax import nnx

from . import Bug
from .inputs import tokens
from .surroundings import (
    VOCABULARY,
    WIDTH,
    PortLanguageModel,
    PortMlp,
    TorchLanguageModel,
    TorchMlp,
)


class PortBlock(nnx.Module):
    def __init__(self, wrong: bool, rngs: nnx.Rngs) -> None:
        self.wrong, self.mlp = wrong, PortMlp(rngs)
        self.input_layernorm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.input_layernorm(x)
        return (y if self.wrong else x) + self.mlp(y)


class Port(PortLanguageModel):
    def __init__(self, wrong: bool) -> None:
        super().__init__("mlp", PortMlp)
        self.layers = nnx.List(PortBlock(wrong, nnx.Rngs(0)) for _ in range(2))


BUG = Bug(
    source="SHI-Labs/Compact-Transformers#25",
    what="adds the branch to the normalised input; PyTorch's model adds it to the input",
    torch=lambda: TorchLanguageModel("mlp", TorchMlp),
    port=Port,
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0",
    named=r"residual|behind (the|its) norm|normalised|post-norm|pre-norm",
    kind="norm",
    trap_added=True,
)

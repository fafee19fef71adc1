"""The port scales by the depth of a head; Gemma 2's 27B scales by its width over its heads.

Source: antonellof/ferrox#40.
"""

from __future__ import annotations

import jax
import torch
from torch import nn

from . import Bug
from .inputs import tokens
from .surroundings import (
    DEPTH,
    VOCABULARY,
    PortAttention,
    PortLanguageModel,
    TorchAttention,
    TorchLanguageModel,
)


class Torch(TorchAttention):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=12**-0.5)


class Port(PortAttention):
    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=DEPTH**-0.5 if self.wrong else 12**-0.5)


BUG = Bug(
    source="antonellof/ferrox#40",
    what="scales scores by another constant than the configuration gives",
    torch=lambda: TorchLanguageModel("self_attn", Torch),
    port=lambda wrong: PortLanguageModel("self_attn", lambda rngs: Port(rngs, wrong)),
    inputs=lambda: (tokens(VOCABULARY),),
    layer="layers.0.self_attn",
    named=r"attention-scale|scale|factor",
    kind="configuration",
    trap_added=True,
)

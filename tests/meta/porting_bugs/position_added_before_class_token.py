"""The port adds positions in front of the class token, which gets none.

Source: labmlai/annotated_deep_learning_paper_implementations#221.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import Bug
from .images import COLUMNS, PATCH, ROWS, PortImageModel, TorchImageModel
from .inputs import numbers
from .surroundings import (
    WIDTH,
)


class Port(PortImageModel):
    def tokens(self, x: jax.Array) -> jax.Array:
        if not self.wrong:
            return super().tokens(x)
        token = jnp.broadcast_to(self.cls_token[...], (len(x), 1, WIDTH))
        return jnp.concatenate((token, x + self.pos_embed[:, 1:]), 1)


BUG = Bug(
    source="labmlai/annotated_deep_learning_paper_implementations#221",
    what="adds no position to the class token",
    torch=TorchImageModel,
    port=Port,
    inputs=lambda: (numbers(2, 3, ROWS * PATCH, COLUMNS * PATCH),),
    layer="(the network)",
    named=r"position.*class token|class token.*position|position-table-missing",
    kind="vision",
    trap_added=True,
)

"""The record of a layer with tensors, of either framework's model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np

from ports.weights.layers.leaves import COUNTER

# Tensors that one side may lack: the counter of batches; a recurrent layer's second bias, folded into the first.
SECOND = "bias_hh"
OPTIONAL = (COUNTER, SECOND)


def normal_name(name: str) -> str:
    """Return a name without `.`, `_` and capitals; `1.1` is not `11`."""
    return re.sub(r"(?<=\d)[._]+(?=\d)", "-", name).replace(".", "").replace("_", "").lower()


@dataclass
class ModelLayer:
    """A layer with tensors of its own.

    Attributes:
        name: in its own framework.
        kind: its rule in `ports.weights.layers.leaves`: `conv`, `linear`; `own` for a module of the user's.
        tensors: by its name within the layer (`weight`), the name of each tensor in the whole model.
        values: by the same names, in PyTorch's layout.
        rank: when it is called first; None if it is never called, and its tensors are not used either.
        owner: for a module's own parameter: the module, or the module around it, that is called.
        leaf: its name within the owner.
        owner_rank: when the owner is called first.
        placed: whether its rank says when it is used; an owner that calls other modules may use it at any time.
        mark: its name within the owner, if the other model has this name equally often.
        key: its name, if names can identify it; None if its numbers are not informative.
        numbered: its name, with each number replaced by its position among the numbers in this place.
        trained: whether a gradient reaches it; buffers, tables and frozen embeddings are not trained.
        seen: whether its call is seen: another module may use the tensors of a layer that is never called.
        ruled: whether a rule that the user registered says how the port holds an own tensor.
        heads: by the names of tensors, into how many heads the port cuts PyTorch's first axis, where it does.
    """

    name: str
    kind: str
    tensors: dict[str, str] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    rank: int | None = None
    owner: str = ""
    leaf: str = ""
    owner_rank: int = 0
    placed: bool = True
    mark: str = ""
    key: str | None = None
    numbered: str = ""
    trained: bool = True
    seen: bool = True
    ruled: bool = False
    heads: dict[str, int] = field(default_factory=dict)

    @property
    def signature(self) -> tuple[object, ...]:
        """Type, and names and shapes of the tensors."""
        return self.kind, self.mark, *sorted((n, v.shape) for n, v in self.values.items() if n not in OPTIONAL)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the tensors, the largest first."""
        return sorted((v.shape for n, v in self.values.items() if n not in OPTIONAL), reverse=True)

    @property
    def normal(self) -> str:
        return normal_name(self.name)

    def requiring(self, leaf: str) -> ModelLayer:
        """Return the layer with a tensor that may be absent under another name, so that the other side must have it."""
        renamed = {leaf: f"{leaf}_required"}
        names, values = ({renamed.get(n, n): x for n, x in some.items()} for some in (self.tensors, self.values))
        return replace(self, tensors=names, values=values)

    def __str__(self) -> str:
        shapes = ", ".join(f"{n} {v.shape}" for n, v in self.values.items() if n not in OPTIONAL)
        return f"{self.name} ({self.kind}: {shapes})"

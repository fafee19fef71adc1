"""Which module around layers of the Flax model is which module of the PyTorch model.

Two modules are one where the tensors in them are the same: what is paired with all tensors of the one are all tensors
of the other. Modules of one's own with nothing but parameters, as a norm, are such modules too. Nothing is decided by
them: that they compute the same is not certain, for a port may cut its modules otherwise. They tell where to look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from parity.pairing.pairs import Pairing
from parity.running.inventory import OWN, module_of
from parity.running.model_layers import normal_name


def blocks(pairing: Pairing, called: Collection[str]) -> dict[str, str]:
    """Return PyTorch's names of modules, by Flax's.

    Args:
        called: the names of PyTorch's modules that can be called: lists of modules cannot.
    """
    ours: dict[str, set[int]] = defaultdict(set)
    theirs: dict[str, set[int]] = defaultdict(set)
    for i, pair in enumerate(pairing.pairs):
        for outer in _around(module_of(pair.torch.name)):
            ours[outer].add(i)
        for outer in _around(pair.flax.name):
            theirs[outer].add(i)
    layers = {module_of(p.torch.name) for p in pairing.pairs if p.torch.kind != OWN}
    found: dict[str, str] = {}
    for inside in {frozenset(some) for some in ours.values()}:
        mine = [name for name, some in ours.items() if some == inside and name in called and name not in layers]
        found |= _one_to_one(mine, [name for name, some in theirs.items() if some == inside])
    return found


def _one_to_one(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Return which module is which of those with the same tensors: one stands in the other. Names tell, or places."""
    if len(ours) == len(theirs):
        both = zip(*(sorted(names, key=lambda name: name.count(".")) for names in (ours, theirs)), strict=True)
        return {flax: torch for torch, flax in both}
    last = [(flax, torch) for torch in ours for flax in theirs if _last(torch) == _last(flax)]
    names = [name for pair in last for name in pair]
    return {flax: torch for flax, torch in last if names.count(flax) == names.count(torch) == 1}


def _last(name: str) -> str:
    return normal_name(name.rpartition(".")[2])


def _around(name: str) -> Iterator[str]:
    """Yield the modules around a layer or a parameter, from the outside in; not the network itself."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        yield ".".join(parts[:i])

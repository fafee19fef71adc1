"""Names of a file's tensors as every reader here wants them: without wrappers, with dots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ports.family import Shape
from ports.weights.form.torch_form import WeightsError

WRAPPER, COMPILED = "module", "_orig_mod"


def stripped(names: Iterable[str]) -> dict[str, str]:
    """Normal names to raw ones: without what DataParallel and torch.compile write into them, at any depth.

    A part `module` is removed where every name under the same module has it, `_orig_mod` always; the last part never,
    and nothing where two names would become one.
    """
    result = {name: name for name in names}
    for shorter in (_without_module, _without_orig_mod):
        renamed = {new: result[name] for name, new in shorter(list(result)).items()}
        if len(renamed) < len(result):
            return result
        result = renamed
    return result


def _without_module(names: list[str]) -> dict[str, str]:
    """Each name without the parts `module` that all names beside it have. Each part is looked at twice, once a pass."""
    node_of: dict[tuple[int, str], int] = {}
    ordinary: set[int] = set()  # modules with something else in them
    for name in names:
        node, (*parts, last) = 0, name.split(".")
        for part in parts:
            if part != WRAPPER:
                ordinary.add(node)
            node = node_of.setdefault((node, part), len(node_of) + 1)
        ordinary.add(node)
    result = {}
    for name in names:
        node, kept, (*parts, last) = 0, [], name.split(".")
        for part in parts:
            if node in ordinary:
                kept.append(part)
            node = node_of[node, part]
        result[name] = ".".join([*kept, last])
    return result


def _without_orig_mod(names: list[str]) -> dict[str, str]:
    split = ((name, name.split(".")) for name in names)
    return {name: ".".join([*(p for p in parts[:-1] if p != COMPILED), parts[-1]]) for name, parts in split}


def normal(names: Mapping[str, Shape]) -> dict[str, str]:
    """Raw names by normal ones: `/` is a dot, wrappers and NNX's `.value` are gone.

    Raises:
        WeightsError: two raw names that are one.
    """
    result: dict[str, str] = {}
    value = all(name.endswith((".value", "/value")) for name in names)
    for name, raw in stripped(names).items():
        new = (name[: -len(".value")] if value else name).replace("/", ".")
        if new in result:
            raise WeightsError(f"{raw}: is {new}, and so is {result[new]}")
        result[new] = raw
    return result


def in_flax(names: Iterable[str]) -> bool:
    """Whether the tensors are called as Flax calls them."""
    ends = {name.replace("/", ".").removesuffix(".value").rpartition(".")[2] for name in names}
    return bool(ends & {"kernel", "embedding"}) and "weight" not in ends

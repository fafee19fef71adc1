"""Names of a file's tensors in the form that every reader here needs: without wrappers, with dots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ports.family import Shape
from ports.weights.form.torch_form import WeightsError

WRAPPER, COMPILED = "module", "_orig_mod"


def stripped(names: Iterable[str]) -> dict[str, str]:
    """Map normal names to raw ones: normal names lack the parts that DataParallel and torch.compile add, at any depth.

    A part `module` is removed if every name under the same module has it, and `_orig_mod` always. The last part is
    never removed, and nothing is removed if two names would become one.
    """
    result = {name: name for name in names}
    for shorter in (_without_module, _without_orig_mod):
        renamed = {new: result[name] for name, new in shorter(list(result)).items()}
        if len(renamed) < len(result):
            return result
        result = renamed
    return result


def _without_module(names: list[str]) -> dict[str, str]:
    """Each name without the parts `module` that all names in the same module have. It looks at each part twice."""
    node_of: dict[tuple[int, str], int] = {}
    ordinary: set[int] = set()  # modules that contain other parts
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
    """Raw names by normal ones: `/` becomes a dot, wrappers and NNX's `.value` are removed.

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
    """Whether the tensors have Flax's names."""
    ends = {name.replace("/", ".").removesuffix(".value").rpartition(".")[2] for name in names}
    return bool(ends & {"kernel", "embedding"}) and "weight" not in ends

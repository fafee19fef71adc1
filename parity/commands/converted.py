"""Proves that a converted file is right: reads it as its user would, and compares it with its source in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ports
from parity.numerics.layouts import leaves
from parity.running import probes as probe
from ports import families
from ports.errors import UserError
from ports.families import layers
from ports.frameworks import LAYOUTS, port_of
from ports.weights.checkpoints import splitting
from ports.weights.checkpoints.checkpoint import Checkpoint
from ports.weights.files import formats
from ports.weights.files.formats import Format
from ports.weights.form.lazy import Array
from ports.weights.known import fold
from ports.weights.known.dialects import STACKED, TARGET, Dialect, DialectEntry, mapping

FOLDED = 1e-10  # relative L2 distance in float64: a folded network is the same function, summed in another order


def verify(held: Checkpoint, path: Path, to: str, row: Format) -> None:
    """Refuse an output that does not equal its source.

    Raises:
        UserError: the two differ, with the first finding; or the network cannot be checked.
    """
    if held.found is None or held.found.spec is None or held.found.headless:
        raise UserError(
            "--check: needs a network with a classifier that is known here; for your own pair of models use "
            "`parity check package.module:function`"
        )
    weights = held.weights
    content = formats.read(path, row.name)
    tensors = splitting.split(path, content, row).weights
    dialects = [one for one in (TARGET[to], STACKED.get(to)) if one and _holds(tensors, mapping(held.found.spec, one))]
    if not dialects:
        _folded(held, tensors, to)
        return
    found = _torch_form(held, tensors, dialects[0])
    wrong = [name for name, array in found.items() if not _same(array, weights[name])]
    if wrong:
        raise UserError(f"--check: {wrong[0]} and {len(wrong) - 1} more differ from the source; nothing was written")
    from parity.api import check

    reference = ports.create(held.found.spec, "pytorch", seed=None)
    ports.weights.write(reference, {name: np.asarray(array) for name, array in weights.items()})
    layout = LAYOUTS[to]
    spec = families.get(held.found.spec, **({"stacked": True} if dialects[0].stacked else {}))
    port = ports.create(spec, layout.name if layout.is_flax else "nnx", seed=None)
    if layout.is_flax:
        port = live(port, path if row.name == "orbax" else tensors)
    else:
        ports.weights.write(port, {name: np.asarray(array) for name, array in found.items()})
    report = check(reference, port, steps=1)
    if report.exit_code:
        model = report.models[0]
        said = "; ".join(str(f.text) for f in model.findings[:2]) or str(model.undecided or "see `parity check`")
        raise UserError(f"--check: the converted network differs from the source: {said}; nothing was written")


def _same(a: Array, b: Array) -> bool:
    return (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())


def _holds(tensors: Mapping[str, Any], rows: Iterable[DialectEntry]) -> bool:
    return all(name in tensors for entry in rows for name in entry.names)


def _torch_form(held: Checkpoint, tensors: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    assert held.found is not None
    assert held.found.spec is not None
    rows = mapping(held.found.spec, dialect)
    return {entry.torch: entry.to_torch(tuple(tensors[name] for name in entry.names)) for entry in rows}


def live(port: Any, source: Path | Mapping[str, np.ndarray]) -> Any:
    """A Flax network with the weights of a file, loaded only by Flax's and Orbax's own functions."""
    import jax.numpy as jnp

    if isinstance(source, Path):
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(source.absolute())
        tree = tree.get("model", tree) if "opt_state" in tree else tree  # a network may have a part `model` itself
    else:
        tree = formats.nested((tuple(name.split(".")), array) for name, array in source.items())
    if port_of(port).collections:
        module, variables = port
        import jax

        return module, jax.tree.map(
            lambda old, new: jnp.asarray(new, old.dtype), variables, {n: tree[n] for n in variables}
        )
    from flax import nnx

    state = nnx.state(port)
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(tree))
    nnx.update(port, state)
    return port


def _folded(held: Checkpoint, tensors: Mapping[str, Array], to: str) -> None:
    """Compare the folded network with the whole one, both in PyTorch and in float64."""
    import torch

    assert held.found is not None
    spec = held.found.spec
    assert spec is not None
    whole: Any = ports.create(spec, "pytorch", seed=None, dtype="float64")
    ports.weights.write(whole, held.weights)
    rows = layers(spec)
    exact, _ = fold.fold(held.weights, rows, "float64")
    expected, _ = fold.fold(held.weights, rows)
    folded: Any = ports.create(spec, "pytorch", seed=None, dtype="float64", folded=True)
    ports.weights.write(folded, exact)
    entries = mapping(fold.folded(rows), TARGET[to])
    given = {e.torch: e.to_torch(tuple(tensors[name] for name in e.names)) for e in entries}
    if wrong := [name for name, array in expected.items() if not _same(given[name], array)]:
        raise UserError(f"--check: {wrong[0]} is not what folding gives; nothing was written")
    rng, size = np.random.default_rng(0), probe.default_size(spec)
    inputs = [torch.from_numpy(one.draw(rng)) for one in families.inputs_of(spec, 2, size)]
    with torch.no_grad():
        reference, found = (
            torch.cat([output.flatten() for _, output in leaves(net.eval()(*inputs), "output")])
            for net in (whole, folded)
        )
        distance = torch.linalg.norm(found - reference) / torch.linalg.norm(reference)
    if not float(distance) < FOLDED:
        raise UserError(
            f"--check: the folded network differs by {float(distance):.1e}, bound {FOLDED}; nothing was written"
        )

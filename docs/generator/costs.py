"""Measure what each known mistake does to a small model: `python -m docs.generator.costs`, a quarter of an hour.

The networks and their mistakes are those of `tests/meta/`. The check measures the costs, in float64.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from parity.reports.report import Cost, finite

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "benchmarks" / "results" / "trap-costs-cpu.json"


def cost_of(case: Any) -> dict[str, Any]:
    """Return the costs of one planted mistake, and the environment of the check."""
    import parity

    torch.manual_seed(0)
    options: Any = {"steps": 1, **case.options}
    report = parity.check(*case.make(), **options)
    costs = [{**asdict(cost), "trap": case.trap} for cost in report.models[0].costs]
    return {"costs": costs or as_they_are(case), "environment": report.environment}


def as_they_are(case: Any) -> list[dict[str, Any]]:
    """Return how the port's own weights change the output: the check itself runs the port with PyTorch's.

    Return nothing if the weights do not fit, or if the port is not an NNX model.
    """
    torch.manual_seed(0)
    model, port, *inputs = case.make()
    if not isinstance(port, nnx.Module):
        return []
    with torch.no_grad():
        expected = model.double().eval()(*map(double, inputs)).numpy()
    port.eval()
    got = output(port, inputs)
    if got is None or got.shape != expected.shape:
        return []
    change = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    return [{**asdict(Cost("nnx", output=change)), "trap": case.trap}]


def output(port: Any, inputs: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return the output in float64, or in float32 if a cell of the port keeps its carry in float32."""
    narrow = nnx.state(port)
    for wide in (True, False):
        with jax.enable_x64(wide), contextlib.suppress(TypeError, ValueError):
            nnx.update(port, jax.tree.map(widened, narrow) if wide else narrow)
            given = [x if wide or x.dtype != np.float64 else x.astype(np.float32) for x in map(channels_last, inputs)]
            return np.array(port(*given))
    return None


def double(x: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(x))
    return tensor.double() if tensor.is_floating_point() else tensor


def widened(x: jax.Array) -> jax.Array:
    return x.astype("float64") if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1) if np.ndim(x) >= 4 else x


def measured(names: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the costs of every case, or of the cases of these traps."""
    from tests import meta

    for place, cases in meta.CASES.items():
        for case in cases:
            if not names or case.trap in names:
                yield place, cost_of(case)


def main(names: tuple[str, ...] = ()) -> None:
    """Measure the traps of these names, or all traps, and write the result into the results file."""
    from tests.meta import commit
    from tests.meta.faithful import compiled_once

    begin = time.monotonic()
    stored = json.loads(FILE.read_text()) if names else {}
    costs = [row for row in stored.get("costs", ()) if row["trap"] not in names]
    measurement: dict[str, Any] = {}
    with compiled_once():
        for place, found in measured(names):
            measurement = {"commit": commit(), "environment": found["environment"]}
            # A row that was measured alone says where it was measured; the file says it for all other rows.
            own = measurement if names else {}
            costs += [{**cost, "place": place, **own} for cost in found["costs"]]
            print(f"{place} {time.monotonic() - begin:.0f} s: {json.dumps(found['costs'])}", flush=True)
    whole = {name: stored[name] for name in ("commit", "environment")} if names else measurement
    FILE.write_text(json.dumps(finite({"schema": 1, **whole, "costs": costs}), indent=1, allow_nan=False) + "\n")
    print(f"stored in {FILE.relative_to(ROOT)}")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))

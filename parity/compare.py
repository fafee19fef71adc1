"""Runs the reference, its perturbed copies and the ports, and judges every tensor of every quantity.

Runs are streams of (quantity, tensors): of a port only the verdicts are kept, so that one network's activations are in
memory beside the reference's at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from parity import bounds, memory, run_flax, run_linen, run_nnx, run_pytorch
from parity.bounds import DRAWS, MULTIPLE, Responses
from parity.quantities import QUANTITIES, SGD, Probe, Tensors
from parity.report import Divergence, Row
from ports import weights

FLAX_PORTS = {"nnx": run_nnx, "linen": run_linen}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Judgement:
    """One quantity of one port.

    Attributes:
        row: the worst tensor.
        outside: the tensors beyond their bounds, in the reference's order.
        largest: the largest relative distance of a tensor that is not zero in exact arithmetic.
        multiple: the worst tensor's distance as a multiple of its rounding response.
    """

    row: Row
    outside: tuple[str, ...]
    largest: float
    multiple: float


def responses_of(reference: torch.nn.Module, fed: Probe, sgd: SGD, seed: int, progress: Progress) -> Responses:
    """Runs the reference once as it is and `DRAWS` times perturbed."""
    progress("reference in PyTorch")
    state = weights.read(reference)
    parameters = {name: state[name] for name in run_pytorch.parameter_names(reference)}
    responses = Responses(dict(run_pytorch.observe(reference, fed, sgd)), parameters)
    for draw in range(DRAWS):
        progress(f"rounding response {draw + 1} of {DRAWS}")
        moved, moved_probe = bounds.perturbed(state, fed, seed * DRAWS + draw)
        copy = run_pytorch.promote(reference)
        weights.write(copy, moved)
        responses.add(run_pytorch.observe(copy, moved_probe, sgd))
        memory.release()
    return responses


def compare(
    reference: torch.nn.Module,
    candidates: Mapping[str, Callable[[], Any]],
    fed: Probe,
    sgd: SGD,
    *,
    seed: int,
    tx: Any = None,
    progress: Progress,
) -> dict[str, Any]:
    """The fields of a `parity.report.Model` that come out of running.

    Args:
        reference: in float64.
        candidates: by port, what builds the network in float64; each is built when its turn comes.
    """
    responses = responses_of(reference, fed, sgd, seed, progress)
    judged: dict[str, dict[str, Judgement]] = {}
    first = None
    for port, build in candidates.items():
        progress(f"{port}: compiling and running")
        functional = FLAX_PORTS[port].functional(build())
        run = run_flax.observe(functional, fed, sgd, list(responses.parameters), tx)
        judged[port] = judge(port, run, responses)
        if first is None and any(j.outside for j in judged[port].values()):
            progress(f"{port}: looking for the first layer that diverges")
            first = first_divergence(port, functional, reference, fed, judged[port], responses)
        del functional, run
        memory.release()
    return {
        "rows": tuple(j.row for quantities in judged.values() for j in quantities.values()),
        "first_divergence": first,
        "undecided": undecided(responses),
        "largest": {port: {q: j.largest for q, j in found.items()} for port, found in judged.items()},
        "multiple": {port: {q: j.multiple for q, j in found.items()} for port, found in judged.items()},
    }


def judge(port: str, run: Iterable[tuple[str, Tensors]], responses: Responses) -> dict[str, Judgement]:
    """Every quantity of a run, in the order of the table."""
    found = {quantity: _judge(port, quantity, tensors, responses) for quantity, tensors in run}
    return {quantity: found[quantity] for quantity in QUANTITIES if quantity in found}


def _judge(port: str, quantity: str, got: Tensors, responses: Responses) -> Judgement:
    expected = responses.reference[quantity]
    outside, largest = [], 0.0
    worst: tuple[float, str, float, float] = (-1.0, "", 0.0, 0.0)
    for name in dict.fromkeys((*expected, *got)):
        if name not in got or name not in expected:
            absent = "the port" if name not in got else "the reference"
            ratio, label, far, bound = np.inf, f"{name} (absent from {absent})", np.inf, 0.0
        else:
            response = responses.response(quantity, name)
            size = bounds.norm(expected[name]) or 1.0
            far, bound = bounds.distance(got[name], expected[name]) / size, MULTIPLE * response / size
            ratio, label = far * MULTIPLE / bound if bound else (np.inf if far else 0.0), name
            if got[name].shape != expected[name].shape:
                label = f"{name} (shape {got[name].shape}, expected {expected[name].shape})"
            if not responses.zero_in_exact_arithmetic(quantity, name):
                largest = max(largest, far)
        if ratio > MULTIPLE:
            outside.append(name)
        worst = max(worst, (float(ratio), label, float(far), float(bound)))
    ratio, label, far, bound = worst
    return Judgement(Row(port, quantity, label, far, bound, ok=not outside), tuple(outside), float(largest), ratio)


def first_divergence(
    port: str,
    functional: run_flax.Functional,
    reference: torch.nn.Module,
    fed: Probe,
    judged: Mapping[str, Judgement],
    responses: Responses,
) -> Divergence:
    """Forward in eval, then forward in train, then what follows from them; gradients from the end of the network."""
    for quantity, train in (("layer.eval", False), ("layer.train", True)):
        if outside := judged[quantity].outside:
            layer, text = _blame(outside[0], functional, reference, fed, train, quantity, responses)
            return Divergence(port, layer, quantity, text)
    quantity, outside = next((q, j.outside) for q, j in judged.items() if j.outside)
    name = outside[-1] if quantity == "gradient.parameter" else outside[0]
    layer = name.rpartition(".")[0] if quantity in ("gradient.parameter", "statistics", "training.parameter") else name
    return Divergence(port, layer, quantity, f" ({name})" if layer != name else "")


def _blame(
    layer: str,
    functional: run_flax.Functional,
    reference: torch.nn.Module,
    fed: Probe,
    train: bool,
    quantity: str,
    responses: Responses,
) -> tuple[str, str]:
    """The layer itself, or, where its input diverges already, the module around it, which computed that input."""
    expected, _ = run_pytorch.layers(reference, fed, train=train)
    got, _ = run_flax.layers(functional, fed, train=train)
    order = list(responses.reference[quantity])
    at = order.index(layer)

    def relative(name: str) -> float:
        return responses.bound(quantity, name) / (bounds.norm(responses.reference[quantity][name]) or 1.0)

    allowed = max(relative(name) for name in order[: at + 1])

    def wrong_input(name: str) -> bool:
        return name in got and bounds.distance(got[name], expected[name]) > allowed * (
            bounds.norm(expected[name]) or 1.0
        )

    if not wrong_input(layer):
        return layer, ""
    outer = layer.rpartition(".")[0]
    while outer and (outer not in expected or wrong_input(outer)):
        outer = outer.rpartition(".")[0]
    return outer or "(the network)", f", between {order[at - 1] if at else 'the images'} and {layer}"


def undecided(responses: Responses) -> str | None:
    """Why the check cannot tell, with the layer that blows the rounding up; None where every bound decides."""
    for quantity in responses.reference:
        for name in responses.undecided(quantity):
            if not np.isfinite(responses.reference[quantity][name]).any():
                return f"{quantity} {name}: no finite number in the reference's (NaN is equal to NaN in any port)"
            relative = responses.bound(quantity, name) / responses.sizes(quantity)[name]
            said = f"{quantity} {name}: a right port may differ by {relative:.0e} of it, more than {bounds.DECIDES:.0e}"
            return f"{said}; rounding grows most at {_amplifier(responses)}"
    return None


def _amplifier(responses: Responses) -> str:
    """The layer whose output holds by far more rounding, relative to its size, than the one before it."""
    found = (0.0, "")
    for quantity in ("layer.eval", "layer.train"):
        least = before = float(np.finfo(np.float64).eps)
        for name, tensor in responses.reference[quantity].items():
            relative = max(least, responses.response(quantity, name) / (bounds.norm(tensor) or 1.0))
            times = relative / before
            found = max(found, (times, f"{name} ({quantity}, {times:.0e} times)"))
            before = relative
    return found[1]

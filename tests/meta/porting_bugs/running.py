"""Runs a bug: the check on the right and on the wrong version, and the rivals on the same two.

Weights are PyTorch's own initial ones, and every tensor of equal numbers (norms, biases) gets random ones, as in a
trained model. `parity.move` brings them into the port.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import linen, nnx
from torch import nn

import parity
from parity.diagnosis.localise import NETWORK
from parity.reports.report import Report
from ports.errors import UserError

from . import Bug, rivals

# What was measured with what.
PACKAGES = ("torch", "jax", "flax", "optax", "numpy")

# What a check comes to, by its exit code.
VERDICTS = ("parity", "mismatch", "undecided")

# A file and a line in a text.
PLACE = re.compile(r" \(\S+\.py:\d+\)")

# Options of a check that `parity.move` takes, too.
OF_MOVES = ("layouts", "names")


@dataclass(frozen=True)
class Outcome:
    """What was measured of one bug.

    Attributes:
        passes: whether the check passes the right version.
        caught: whether the check ends with exit code 1 for the wrong version.
        place: whether the first finding of the wrong version is at the bug's place.
        named: whether the first finding names the bug.
        right: what the check said of the right version, in a line.
        wrong: the verdict on the wrong version.
        layer: of the first finding; empty where there is no finding.
        trap: of the first finding.
        text: of the first finding; or why the check refused.
        findings: how many there are.
        moved: False where `parity.move` refused the wrong version, which then got the right version's weights.
        finds: by rule, whether a rival rejects the wrong version; None where the rule cannot be applied.
        rejects_right: by rule, whether it rejects the right version.
    """

    passes: bool
    caught: bool
    place: bool
    named: bool
    right: str
    wrong: str
    layer: str
    trap: str | None
    text: str
    findings: int
    moved: bool
    finds: Mapping[str, bool | None]
    rejects_right: Mapping[str, bool | None]


def run(bug: Bug) -> Outcome:
    """Build both versions, and ask the check and the rivals about each."""
    reference, arrays = seeded(bug), bug.inputs()
    right = moved(bug, reference, built(bug, False))
    try:
        wrong, fits = moved(bug, reference, built(bug, True)), True
    except UserError:
        wrong, fits = with_weights_of(right, built(bug, True)), False
    good = checked(bug, reference, right, bug.options)
    bad = checked(bug, reference, wrong, {**bug.options, **bug.mistaken})
    return Outcome(
        passes=isinstance(good, Report) and good.exit_code == 0,
        **told(bug, bad),
        right=VERDICTS[good.exit_code] if isinstance(good, Report) else good,
        moved=fits,
        finds=rivals.rejections(rivals.outputs(reference, wrong, arrays)),
        rejects_right=rivals.rejections(rivals.outputs(reference, right, arrays)),
    )


def told(bug: Bug, report: Report | str) -> dict[str, Any]:
    """Return what the check says of the wrong version, and whether that is the bug."""
    if isinstance(report, str):
        said = {"wrong": "refused", "layer": "", "trap": None, "text": report, "findings": 0}
        return {"caught": False, "place": False, "named": False, **said}
    findings = report.models[0].findings
    first = findings[0] if findings else None
    return {
        "caught": report.exit_code == 1,
        "place": first is not None and is_at(first.layer, bug.layers),
        "named": first is not None and is_named(bug, first.trap, first.text),
        "wrong": VERDICTS[report.exit_code],
        "layer": first.layer if first else "",
        "trap": first.trap if first else None,
        "text": first.text if first else "",
        "findings": len(findings),
    }


def is_at(found: str, layers: Sequence[str]) -> bool:
    """Return whether a place is one of these layers, lies within one, or is the block that holds one."""
    return any(
        found in (layer, layer.rpartition(".")[0] or NETWORK) or found.startswith(f"{layer}.") for layer in layers
    )


def is_named(bug: Bug, trap: str | None, text: str) -> bool:
    """Return whether a finding's trap and text match what the bug must be called.

    The name of a file in it does not count: it is the bug's own.
    """
    return re.search(bug.named, f"[{trap or ''}] {PLACE.sub('', text)}", re.IGNORECASE) is not None


def seeded(bug: Bug) -> nn.Module:
    """Build the reference in eval mode, as after training: no tensor has equal numbers."""
    torch.manual_seed(0)
    model = bug.torch().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor += 0.1 * torch.randn_like(tensor)
    return model


def built(bug: Bug, wrong: bool) -> Any:
    """Build a version of the port: an NNX model, or Linen's `(module, variables)`."""
    model = bug.port(wrong)
    if not isinstance(model, linen.Module):
        return model
    arrays = (rivals.flax_array(array, jnp.float32) for array in bug.inputs())
    return model, model.init(jax.random.key(0), *arrays)


def moved(bug: Bug, reference: nn.Module, port: Any) -> Any:
    """Bring PyTorch's weights into a port."""
    options: Any = {name: bug.options[name] for name in OF_MOVES if name in bug.options}
    return parity.move(reference, port, *bug.inputs(), **options)


def with_weights_of(right: Any, wrong: Any) -> Any:
    """Return the wrong version with the weights of the right one."""
    if not isinstance(wrong, nnx.Module):
        return wrong[0], right[1]
    nnx.update(wrong, nnx.state(right, nnx.Param, nnx.BatchStat))
    return wrong


def checked(bug: Bug, reference: nn.Module, port: Any, options: Mapping[str, Any]) -> Report | str:
    """Return the check's report, or why it refuses."""
    try:
        return parity.check(reference, port, *bug.inputs(), **options)
    except UserError as error:
        return str(error)


def to_json(outcomes: Mapping[str, Outcome], bugs: Mapping[str, Bug]) -> dict[str, Any]:
    """Return what is stored: of each bug its row and what was measured, and the versions that it was measured with."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"versions": versions, "bugs": {n: {**row(bugs[n]), **asdict(o)} for n, o in outcomes.items()}}


def row(bug: Bug) -> dict[str, Any]:
    """Return what a bug's record says of it, as stored beside what was measured."""
    said = {"source": bug.source, "what": bug.what, "kind": bug.kind, "blind": bug.blind}
    return {**said, "trap_added": bug.trap_added, "layers": list(bug.layers), "pattern": bug.named}

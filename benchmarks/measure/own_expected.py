"""The expected results of somebody's own pair: the check in float64, and the bounds of the gate."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure.expected import BOUNDS, DRAWS, distances, is_prepared, place_of
from benchmarks.subjects.case import Numbers, SubjectCase
from benchmarks.subjects.own_pair import OwnSubject, OwnTorch, keep, load_pair, narrow
from benchmarks.subjects.settings import UNITS, Setting
from benchmarks.subjects.torch_steps import device, policy
from parity.numerics.bounds import one_ulp
from parity.numerics.layouts import leaves
from parity.running import losses
from ports.errors import UserError


def prepare(setting: Setting, folder: Path) -> list[str]:
    """Check a pair in float64, and write the expected results of each side.

    Returns:
        The differences that the check accepts on request of the pair's file.

    Raises:
        UserError: no parity.
    """
    place = place_of(setting, {}, folder)
    pair = load_pair(setting.network)
    accepted: list[str] = list(pair.options.get("accept") or ())
    if is_prepared(place):
        return accepted
    require_parity(pair)
    reference = OwnReference(pair, setting)
    expected = reference.run(wide=True)
    bounds = dict.fromkeys(expected, 0.0)
    for seed in range(DRAWS):
        drawn = distances(reference.run(wide=False, units=UNITS["float32"], seed=seed), expected)
        bounds = {name: max(bounds[name], far) for name, far in drawn.items()}
    place.mkdir(parents=True, exist_ok=True)
    keep(place, pair)
    np.savez(place / "expected.npz", **expected)  # pyright: ignore[reportArgumentType]
    (place / BOUNDS).write_text(json.dumps(bounds))
    return accepted


def require_parity(pair: OwnSubject) -> None:
    """Raise if the check in float64 finds a mistake, or cannot tell.

    Raises:
        UserError: no parity.
    """
    import parity

    report = parity.check(pair.torch_model, pair.flax_model, *pair.inputs, **pair.options)
    if not report:
        model = report.models[0]
        findings = "; ".join(str(finding.text) for finding in model.findings[:2])
        raise UserError(f"no parity: {findings or model.undecided or 'see `parity check`'}")


@dataclass(frozen=True)
class OwnReference:
    """The PyTorch side of a pair, run once in a setting's mode without keeping what it changes."""

    pair: OwnSubject
    setting: Setting

    def run(self, wide: bool, units: int = 0, seed: int = 0) -> Numbers:
        """Return the outputs, or in training the loss.

        Args:
            wide: in float64 instead of float32.
            units: move weights and inputs by this many units in the last place.
            seed: of these moves.
        """
        setting, rng = self.setting, np.random.default_rng([seed, 9])
        model = copy.deepcopy(self.pair.torch_model).to(device(setting.device)).train(setting.mode == "training")
        fed = tuple(narrow(array) for array in self.pair.inputs)
        if units:
            fed = tuple(one_ulp(array, rng, units) for array in fed)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.copy_(torch.from_numpy(one_ulp(tensor.cpu().numpy(), rng, units)))
        model = model.double() if wide else model
        inputs = OwnTorch.inputs_of(fed, torch.float64 if wide else None, setting.device)
        with torch.no_grad(), policy("float32", setting.device):
            values = model(*inputs, **self.pair.keywords)
            if setting.mode == "training":
                values = losses.projection(0).torch(values)
        return {name: value.double().cpu().numpy() for name, value in leaves(values, "output")}


def read_case(setting: Setting, folder: Path) -> SubjectCase:
    """Read what `prepare` wrote; the subject makes the models itself."""
    place = place_of(setting, {}, folder)
    bounds = json.loads((place / BOUNDS).read_text())
    return SubjectCase(setting, dict(np.load(place / "expected.npz")), bounds, place)

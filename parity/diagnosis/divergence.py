"""Names the first place where a port leaves its bounds."""

from __future__ import annotations

from collections.abc import Mapping

from parity.diagnosis.localise import Deviation, behind_of
from parity.numerics.quantities import parameter_of
from parity.reports.report import Divergence
from parity.verdict.judgement import Judgement

# The quantities whose tensors are named after parameters and statistics, not after layers.
OF_PARAMETERS = ("gradient.parameter", "statistics", "training.parameter", "training.state")


def first_divergence(port: str, judged: Mapping[str, Judgement], forced: Mapping[bool, list[Deviation]]) -> Divergence:
    """Look forward in eval mode, then in train mode, then at the rest; gradients from the end of the network.

    Args:
        forced: by mode (train or not), what is wrong by itself.
    """
    for quantity, train in (("layer.eval", False), ("layer.train", True)):
        if outside := judged[quantity].outside:
            if deviation := next(iter(forced[train]), None):
                stretch = f", between {deviation.before or 'the input'} and {behind_of(deviation)}"
                text = stretch if deviation.aspect == "between" else ""
                return Divergence(port, deviation.layer, quantity, text)
            return Divergence(port, outside[0], quantity)
    quantity, outside = next((q, j.outside) for q, j in judged.items() if j.outside)
    name = outside[-1] if quantity == "gradient.parameter" else outside[0]
    name = parameter_of(quantity, name) if quantity.startswith("training.") else name
    layer = name.rpartition(".")[0] if quantity in OF_PARAMETERS else name
    return Divergence(port, layer, quantity, f" ({name})" if layer != name else "")

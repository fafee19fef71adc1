"""The study's plot as SVG, and its figures as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.depth.plan import CONVOLUTIONS, PLAIN, RESIDUAL
from benchmarks.reporting import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 50  # steps whose training errors are averaged
LINES: dict[str, dict[str, Any]] = {
    "pytorch": {"lw": 3.0, "alpha": 0.35, "marker": ".", "ms": 6},
    "nnx": {"lw": 1.2, "ls": (0, (1, 1)), "marker": ".", "ms": 2},
}
NAMES = {"pytorch": "PyTorch", "nnx": "Flax NNX"}
Network = Mapping[str, Any]


def smoothed(errors: Sequence[float]) -> tuple[list[int], list[float]]:
    """Return the means of `WINDOW` steps, and the step at the end of each."""
    width = min(WINDOW, len(errors))
    starts = range(0, len(errors) - width + 1, width)
    return [i + width for i in starts], [100 * mean(errors[i : i + width]) for i in starts]


def of_group(found: Mapping[str, Any], group: str) -> list[Network]:
    """Return the networks of a group whose frameworks agree."""
    return [network for network in found["networks"] if network["group"] == group and network["curves"]]


def _lines(
    axis: Axes, networks: Sequence[Network], points: Callable[[Network, Any], tuple[Sequence[float], Sequence[float]]]
) -> None:
    """Draw a line for each network and framework: PyTorch's wide and pale, Flax's dotted on it.

    Args:
        points: gives places and values of a network from its curves in one framework.
    """
    for colour, network in zip(charts.COLOURS, networks, strict=False):
        for framework, style in LINES.items():
            label = f"{network['label']}, {NAMES[framework]}"
            axis.plot(*points(network, network["curves"][framework]), color=colour, label=label, **style)
    axis.legend(fontsize=6, frameon=False, ncols=2)


def training_error(axis: Axes, networks: Sequence[Network]) -> None:
    """Draw the training error over the steps."""
    _lines(axis, networks, lambda _, curves: smoothed(curves["train_error"]))
    axis.set_xlabel(f"step, at the end of {WINDOW} that are averaged")
    axis.set_ylabel("training error, %")


def test_error(axis: Axes, networks: Sequence[Network]) -> None:
    """Draw the test error over the steps."""
    _lines(axis, networks, lambda _, curves: (curves["at"], [100 * error for error in curves["test_error"]]))
    axis.set_xlabel("step")
    axis.set_ylabel("test error, %")


def gradients(which: int, said: str) -> Callable[[Axes, Sequence[Network]], None]:
    """Return what draws the norm of each layer's gradient at one of the looks: 0 is the start, -1 the end."""

    def points(network: Network, curves: Any) -> tuple[list[float], list[float]]:
        last = max(1, len(network["layers"]) - 1)
        return [i / last for i in range(len(network["layers"]))], curves["gradient"][which]

    def draw(axis: Axes, networks: Sequence[Network]) -> None:
        _lines(axis, networks, points)
        axis.set_yscale("log")
        axis.set_xlabel("position of the layer: 0 is the first, 1 the classifier")
        axis.set_ylabel(f"norm of its gradient {said}")

    return draw


AT_START, AT_END = gradients(0, "at the start"), gradients(-1, "at the end")
PANELS: tuple[tuple[str, Callable[[Axes, Sequence[Network]], None]], ...] = (
    (PLAIN, training_error),
    (RESIDUAL, training_error),
    (PLAIN, AT_START),
    (RESIDUAL, AT_START),
    (PLAIN, AT_END),
    (RESIDUAL, AT_END),
    (CONVOLUTIONS, training_error),
    (CONVOLUTIONS, test_error),
)


def draw(found: Mapping[str, Any]) -> str:
    """Draw all panels that have networks.

    Raises:
        UserError: matplotlib is not installed, or no network has curves.
    """
    panels = [(group, panel) for group, panel in PANELS if of_group(found, group)]
    with charts.styled():
        figure, axes = charts.figure_of(len(panels), 2.8)
        for (group, panel), axis in zip(panels, axes, strict=True):
            panel(axis, of_group(found, group))
            axis.set_title(group, fontsize=9)
        by_drawing: dict[Any, list[Axes]] = {}
        for (_, panel), axis in zip(panels, axes, strict=True):
            by_drawing.setdefault(panel, []).append(axis)
        for same in by_drawing.values():  # plain and residual networks share one scale
            low, high = (min(a.get_ylim()[0] for a in same), max(a.get_ylim()[1] for a in same))
            for axis in same:
                axis.set_ylim(low, high)
        return charts.svg_of(figure)


HEAD = (
    "network",
    "in",
    f"training error, last steps (up to {WINDOW})",
    "test error at the end",
    "gradient of the first layer at the start",
    "first steps apart in float64 (allowed)",
)


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row of figures for each network and framework, under `HEAD`."""
    for network in found["networks"]:
        judged = network["agreement"]
        apart = f"{judged['distance']:.1e} ({judged['bound']:.1e})"
        if not network["curves"]:
            yield network["label"], "both", "", "", "", f"no parity: {apart} at {judged['where']}"
        for framework, curves in network["curves"].items():
            yield (
                network["label"],
                NAMES[framework],
                f"{smoothed(curves['train_error'])[1][-1]:.1f} %",
                f"{100 * curves['test_error'][-1]:.1f} %",
                f"{curves['gradient'][0][0]:.2g}",
                apart,
            )

"""A check that proves a Flax port of a PyTorch network right, or names the first layer that is wrong.

parity.assert_parity("resnet50")
report = parity.check(torch_net, nnx_net)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.api import assert_parity, check, check_network, move
    from parity.options import MoveOptions, NetworkOptions, PairOptions
    from parity.reports.report import Report

HOMES = {
    **dict.fromkeys(("assert_parity", "check", "check_network", "move"), "parity.api"),
    **dict.fromkeys(("MoveOptions", "NetworkOptions", "PairOptions"), "parity.options"),
    "Report": "parity.reports.report",
}

__all__ = ["MoveOptions", "NetworkOptions", "PairOptions", "Report", "assert_parity", "check", "check_network", "move"]


def __getattr__(name: str) -> Any:
    """The frameworks are loaded with the first check, not with the package: `parity --help` answers at once."""
    import importlib

    if name not in HOMES:
        raise AttributeError(f"module 'parity' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)

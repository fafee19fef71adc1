"""Layers on the wrong side of an operation. `diagnosis/exchanged.py` recognises them; no single call can have them."""

from __future__ import annotations

from parity.traps.trap import Trap

LAYER_AFTER, LAYER_BEFORE, ROTARY_BEFORE_NORM = "layer-after-operation", "layer-before-operation", "rotary-before-norm"

ORDER = (
    Trap(
        LAYER_AFTER,
        "between",
        (),
        None,
        "a layer comes after an operation; PyTorch's model calls the layer first",
        "call the layer before the operation",
        "Xiong et al. 2020 (arXiv:2002.04745)",
    ),
    Trap(
        LAYER_BEFORE,
        "between",
        (),
        None,
        "a layer comes before an operation; PyTorch's model calls the layer after it",
        "call the layer after the operation",
        "Xiong et al. 2020 (arXiv:2002.04745)",
    ),
)

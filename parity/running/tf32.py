"""Whether a GPU may round the products of PyTorch's convolutions and matrices to TF32, for a time.

PyTorch has two interfaces for this choice, and raises if one is read while the other has a different value. Inductor
reads the old one. So both are set, and both are restored.

Source: PyTorch's CUDA semantics, "TensorFloat-32 (TF32) on Ampere (and later) devices".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn
_MATMUL: Any = torch.backends.cuda.matmul
_MKLDNN: Any = torch.backends.mkldnn
PARTS: tuple[Any, ...] = (_CUDNN.conv, _CUDNN.rnn, _MATMUL)
WORDS = {True: "tf32", False: "ieee"}


@contextmanager
def products(tf32: bool) -> Iterator[None]:
    """Round products to TF32, or do not, during the block."""
    everything = (*PARTS, _MKLDNN.matmul)  # the old interface sets the CPU's as well
    before = [part.fp32_precision for part in everything]
    try:
        old = _CUDNN.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set only the new interface: the old one can be neither read nor restored
        old = None
    try:
        if old is not None:
            _CUDNN.allow_tf32 = tf32
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
        for part in PARTS:
            part.fp32_precision = WORDS[tf32]
        yield
    finally:
        if old is not None:
            _CUDNN.allow_tf32 = old[0]
            torch.set_float32_matmul_precision(old[1])
        for part, word in zip(everything, before, strict=True):
            part.fp32_precision = word

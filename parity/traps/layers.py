"""Known mistakes of ports, in single layers: what each does, and how to mend it.

A trap plants its mistake in the reference's layer. Where the layer then gives what the port's gives, on the same inputs
in both modes, that is the diagnosis. A new mistake is a new row of `TRAPS`.
"""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.traps.more_layers import MORE
from parity.traps.planting import Trap, setting, tensor
from parity.traps.wrappers import Always, BiasedVariance, NotUpdated, SamePadding
from ports.errors import UserError

CONV, LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.Linear,)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm)


def unpadded(layer: Any) -> nn.Module | None:
    return setting(padding=(0,) * len(layer.padding))(layer) if isinstance(layer.padding, tuple) else None


def strideless(layer: Any) -> nn.Module | None:
    return setting(stride=(1,) * len(layer.stride))(layer)


def undilated(layer: Any) -> nn.Module | None:
    if set(layer.dilation) == {1}:
        return None
    layer.padding = tuple(p // d for p, d in zip(layer.padding, layer.dilation, strict=True))
    return setting(dilation=(1,) * len(layer.dilation))(layer)


def rounded(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype).to(t.dtype)


EPSILON = "pass epsilon explicitly, as PyTorch's layer has it"
MOMENTUM = "Flax's momentum is the weight of the old value: pass 1 − PyTorch's"
KERNEL = "a kernel goes from (out, in, height, width) to (height, width, in, out): transpose by (2, 3, 1, 0)"

TRAPS = (
    Trap(
        "conv-padding-same",
        CONV,
        lambda layer: None if set(layer.stride) == {1} else SamePadding(layer),
        "the convolution pads like 'SAME'; PyTorch pads both sides alike",
        "give the padding as numbers: ((1, 1), (1, 1))",
    ),
    Trap("conv-padding-none", CONV, unpadded, "the convolution does not pad", "give the padding as numbers"),
    Trap("conv-stride-one", CONV, strideless, "the convolution has stride 1", "pass strides"),
    Trap("conv-dilation-forgotten", CONV, undilated, "the kernel is not dilated", "pass kernel_dilation"),
    Trap(
        "kernel-transposed",
        CONV,
        tensor("weight", lambda w: w.transpose(-1, -2) if w.ndim > 3 else w),
        "height and width of the kernel are exchanged",
        KERNEL,
    ),
    Trap(
        "kernel-flipped",
        CONV,
        tensor("weight", lambda w: w.flip(tuple(range(2, w.ndim)))),
        "the kernel is flipped",
        KERNEL,
    ),
    Trap(
        "kernel-in-out-exchanged",
        CONV,
        tensor("weight", lambda w: w.transpose(0, 1)),
        "input and output channels of the kernel are exchanged",
        KERNEL,
    ),
    Trap(
        "linear-transposed",
        LINEAR,
        tensor("weight", lambda w: w.T),
        "the matrix is not transposed",
        "PyTorch has (out, in), Flax (in, out): .T",
    ),
    Trap(
        "bias-lost",
        CONV + LINEAR,
        tensor("bias", torch.zeros_like),
        "the bias is missing or zero",
        "use_bias=True, and write the bias",
    ),
    Trap("bn-epsilon-1e-3", BATCH_NORM, setting(eps=1e-3), "epsilon is 1e-3", EPSILON),
    Trap("bn-epsilon-1e-6", BATCH_NORM, setting(eps=1e-6), "epsilon is 1e-6", EPSILON),
    Trap("norm-epsilon-1e-6", NORM, setting(eps=1e-6), "epsilon is 1e-6, which is Flax's default", EPSILON),
    Trap("bn-momentum-0.99", BATCH_NORM, setting(momentum=0.01), "the momentum is Flax's default, 0.99", MOMENTUM),
    Trap(
        "bn-momentum-copied",
        BATCH_NORM,
        lambda bn: None if bn.momentum is None else setting(momentum=1 - bn.momentum)(bn),
        "PyTorch's momentum was copied",
        MOMENTUM,
    ),
    Trap(
        "bn-running-var",
        BATCH_NORM,
        lambda bn: None if bn.momentum is None else BiasedVariance(bn),
        "the running variance is the biased one; PyTorch keeps n / (n − 1) of it",
        "multiply by n / (n − 1) in a subclass",
    ),
    Trap(
        "bn-always-train",
        BATCH_NORM,
        lambda bn: Always(bn, True),
        "the layer is always in train mode",
        "net.eval(), or use_running_average=True",
    ),
    Trap(
        "bn-always-eval",
        BATCH_NORM,
        lambda bn: Always(bn, False),
        "the layer is always in eval mode",
        "net.train(), or use_running_average=False",
    ),
    Trap(
        "bn-update-lost",
        BATCH_NORM,
        NotUpdated,
        "the updated statistics are lost",
        "nnx.jit, or put mutable's result back",
    ),
    Trap(
        "bn-mean-lost",
        BATCH_NORM,
        tensor("running_mean", torch.zeros_like),
        "the running mean is zero",
        "write running_mean to `mean`",
    ),
    Trap(
        "bn-variance-lost",
        BATCH_NORM,
        tensor("running_var", torch.ones_like),
        "the running variance is one",
        "write running_var to `var`",
    ),
    Trap(
        "bn-mean-bfloat16",
        BATCH_NORM,
        tensor("running_mean", rounded(torch.bfloat16)),
        "the running mean was rounded to bfloat16",
        "keep statistics in float32",
    ),
    Trap(
        "bn-variance-bfloat16",
        BATCH_NORM,
        tensor("running_var", rounded(torch.bfloat16)),
        "the running variance was rounded to bfloat16",
        "keep statistics in float32",
    ),
    Trap(
        "norm-scale-lost",
        BATCH_NORM + NORM,
        tensor("weight", torch.ones_like),
        "the scale is one",
        "write weight to `scale`",
    ),
    Trap(
        "norm-bias-lost",
        BATCH_NORM + NORM,
        tensor("bias", torch.zeros_like),
        "the bias is zero",
        "write bias to `bias`",
    ),
    *MORE,
)


def accepted(net: nn.Module, names: Sequence[str]) -> None:
    """Plant these mistakes in every layer of `net` that can have them: a port that makes them equals it then.

    Raises:
        UserError: no mistake has this name, or no layer can have it.
    """
    for name in names:
        trap = next((t for t in TRAPS if t.name == name), None)
        if trap is None:
            near = difflib.get_close_matches(name, [t.name for t in TRAPS], 1, 0)[0]
            raise UserError(f"accept: got {name!r}, expected the name of a trap such as {near!r}")
        planted = [module for module in net.modules() if isinstance(module, trap.layers) and plant_in(trap, module)]
        if not planted:
            raise UserError(f"accept: no layer of the model can have {name!r}")


def plant_in(trap: Trap, layer: nn.Module) -> bool:
    """Plant `trap` in `layer`, which keeps its name, type and tensors. Return whether the layer can have it."""
    planted = trap.plant(layer)
    if planted is None or planted is layer:
        return planted is not None
    original: Any = type(layer)

    def forward(self: Any, *args: Any, **kw: Any) -> Any:
        wrapper: Any = trap.plant(_unhooked(self, original))
        wrapper.training = self.training
        return wrapper(*args, **kw)

    layer.__class__ = type(original.__name__, (original,), {"forward": forward})
    return True


def _unhooked(layer: Any, original: type) -> Any:
    """Return a copy of `layer` that shares its tensors and has its original type and no hooks.

    The wrapper of a trap calls the layer inside the layer's own call. With hooks this would be a second call in the
    record, which no port has, and the layer would not be compared.
    """
    inner = copy.copy(layer)
    inner.__class__ = original
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(inner, hooks, OrderedDict())
    return inner

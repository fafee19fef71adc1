"""Known mistakes in norms: their settings, parameters, statistics and axes. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.traps.layers.layer_types import BATCH_NORM, NORM
from parity.traps.layers.wrappers import Always, Around, BiasedVariance, NotUpdated, another_function, normalised
from parity.traps.planting import setting, tensor
from parity.traps.trap import Argument, Trap

EPSILON = "pass epsilon explicitly, as PyTorch's layer has it"
MOMENTUM = "Flax's momentum is the weight of the old value: pass 1 − PyTorch's"
NORM_PAGES = "torch.nn.LayerNorm, flax.linen.LayerNorm"
MOMENTUM_PAGE = "flax.linen.BatchNorm: momentum"
BATCH_NORM_PAGES = "torch.nn.BatchNorm2d, flax.linen.BatchNorm"
GROUP_NORM_PAGES = "Wu and He 2018; flax.linen.GroupNorm: num_groups"


def _rounded(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype).to(t.dtype)


def _groups(number: Callable[[Any], int]) -> Callable[[Any], nn.Module | None]:
    return lambda norm: setting(num_groups=number(norm))(norm)


def _rows(layer: Any) -> nn.Module:
    """Normalise over the rows, which are axis 1 of channels-last images, where PyTorch has the channels."""
    return Around(layer, lambda x: x.transpose(1, 2), lambda y: y.transpose(1, 2))


def _cumulative(layer: Any) -> nn.Module | None:
    return setting(momentum=0.1)(layer) if layer.momentum is None else None


BATCH_NORMS = (
    Trap(
        "bn-epsilon-1e-3",
        "layer",
        BATCH_NORM,
        setting(eps=1e-3),
        "epsilon is 1e-3",
        EPSILON,
        "flax.linen.BatchNorm: epsilon",
        arguments=("epsilon",),
    ),
    Trap(
        "bn-epsilon-1e-6",
        "layer",
        BATCH_NORM,
        setting(eps=1e-6),
        "epsilon is 1e-6",
        EPSILON,
        "flax.linen.BatchNorm: epsilon",
        arguments=("epsilon",),
    ),
    Trap(
        "norm-epsilon-1e-6",
        "layer",
        NORM,
        setting(eps=1e-6),
        "epsilon is 1e-6, which is Flax's default",
        EPSILON,
        NORM_PAGES,
        arguments=("epsilon",),
    ),
    Trap(
        "bn-momentum-0.99",
        "layer",
        BATCH_NORM,
        setting(momentum=0.01),
        "the momentum is Flax's default, 0.99",
        "pass momentum=1 − PyTorch's momentum: Flax's is the weight of the old value",
        MOMENTUM_PAGE,
        arguments=("momentum",),
    ),
    Trap(
        "bn-momentum-copied",
        "layer",
        BATCH_NORM,
        lambda bn: None if bn.momentum is None else setting(momentum=1 - bn.momentum)(bn),
        "PyTorch's momentum was copied",
        "pass momentum=1 − PyTorch's momentum: Flax's is the weight of the old value",
        MOMENTUM_PAGE,
        arguments=("momentum",),
    ),
    Trap(
        "bn-running-var",
        "layer",
        BATCH_NORM,
        lambda bn: None if bn.momentum is None else BiasedVariance(bn),
        "the running variance is biased; PyTorch multiplies it by n / (n − 1)",
        "multiply the variance that updates var by n / (n − 1), in a subclass of nn.BatchNorm",
        "torch.nn.BatchNorm2d, Note",
    ),
    Trap(
        "bn-always-train",
        "layer",
        BATCH_NORM,
        lambda bn: Always(bn, True),
        "the layer is always in train mode",
        "call net.eval(), or pass use_running_average=True",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "bn-always-eval",
        "layer",
        BATCH_NORM,
        lambda bn: Always(bn, False),
        "the layer is always in eval mode",
        "call net.train(), or pass use_running_average=False",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "bn-update-lost",
        "layer",
        BATCH_NORM,
        NotUpdated,
        "the updated statistics are lost",
        "use nnx.jit instead of jax.jit; in Linen, keep the batch_stats that apply(mutable=…) returns",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "bn-mean-lost",
        "layer",
        BATCH_NORM,
        tensor("running_mean", torch.zeros_like),
        "the running mean is zero",
        "write running_mean to mean",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "bn-variance-lost",
        "layer",
        BATCH_NORM,
        tensor("running_var", torch.ones_like),
        "the running variance is one",
        "write running_var to var",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "bn-mean-bfloat16",
        "layer",
        BATCH_NORM,
        tensor("running_mean", _rounded(torch.bfloat16)),
        "the running mean was rounded to bfloat16",
        "keep statistics in float32",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "bn-variance-bfloat16",
        "layer",
        BATCH_NORM,
        tensor("running_var", _rounded(torch.bfloat16)),
        "the running variance was rounded to bfloat16",
        "keep statistics in float32",
        BATCH_NORM_PAGES,
    ),
    Trap(
        "norm-scale-lost",
        "layer",
        BATCH_NORM + NORM,
        tensor("weight", torch.ones_like),
        "the scale is one",
        "write PyTorch's weight to scale",
        NORM_PAGES,
    ),
    Trap(
        "norm-bias-lost",
        "layer",
        BATCH_NORM + NORM,
        tensor("bias", torch.zeros_like),
        "the bias is zero",
        "write PyTorch's bias to bias",
        NORM_PAGES,
    ),
)

OTHER_NORMS = (
    *(
        Trap(
            f"norm-epsilon-{epsilon}",
            "layer",
            NORM,
            setting(eps=float(epsilon)),
            f"epsilon is {epsilon}",
            EPSILON,
            NORM_PAGES,
            arguments=("epsilon",),
        )
        for epsilon in ("1e-3", "1e-5", "1e-8", "1e-12")
    ),
    Trap(
        "group-norm-32-groups",
        "layer",
        NORM[1:2],
        _groups(lambda _: 32),
        "32 groups, Flax's default",
        "pass num_groups=, as PyTorch's layer has it",
        GROUP_NORM_PAGES,
        arguments=("num_groups",),
    ),
    Trap(
        "group-norm-one-group",
        "layer",
        NORM[1:2],
        _groups(lambda _: 1),
        "one group of all channels",
        "pass num_groups=, as PyTorch's layer has it",
        GROUP_NORM_PAGES,
        arguments=("num_groups",),
    ),
    Trap(
        "group-norm-per-channel",
        "layer",
        NORM[1:2],
        _groups(lambda n: n.num_channels),
        "a group a channel",
        "pass num_groups=, as PyTorch's layer has it",
        GROUP_NORM_PAGES,
        arguments=("num_groups",),
    ),
    Trap(
        "group-norm-group-size",
        "layer",
        NORM[1:2],
        _groups(lambda n: n.num_channels // n.num_groups),
        "the number of groups was given as their size",
        "pass the number of groups as num_groups=, not the size of a group",
        GROUP_NORM_PAGES,
        arguments=("num_groups",),
    ),
    Trap(
        "layer-norm-over-time",
        "layer",
        NORM[:1],
        another_function(normalised, time=True),
        "the norm goes over all axes except the batch; PyTorch's goes over normalized_shape",
        "pass reduction_axes=-1, or all axes of PyTorch's normalized_shape",
        "flax.linen.LayerNorm: reduction_axes",
        arguments=("reduction_axes",),
    ),
    Trap(
        "layer-norm-keeps-mean",
        "layer",
        NORM[:1],
        another_function(normalised, mean=False),
        "RMSNorm for LayerNorm",
        "use nn.LayerNorm, which subtracts the mean",
        "Zhang and Sennrich 2019",
    ),
    Trap(
        "layer-norm-unbiased",
        "layer",
        NORM[:1],
        another_function(normalised, ddof=1),
        "the variance is divided by n − 1",
        "divide the variance by n: use jnp.var with ddof=0",
        "torch.nn.LayerNorm",
    ),
    Trap(
        "bn-axis",
        "layer",
        BATCH_NORM[1:2],
        _rows,
        "the norm goes over axis 1, which is PyTorch's axis of channels",
        "pass axis=-1, where Flax has the channels",
        BATCH_NORM_PAGES,
        arguments=(Argument("axis", value=-1),),
    ),
    Trap(
        "bn-momentum-cumulative",
        "layer",
        BATCH_NORM,
        _cumulative,
        "the momentum is 0.9; with momentum=None PyTorch takes the mean of all batches",
        "average over all batches: weigh the k-th batch's statistics by 1 / k",
        MOMENTUM_PAGE,
    ),
)

"""Known mistakes of losses, planted in the functions that PyTorch's loss calls. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.traps.operations.parts import made
from parity.traps.planting import Values
from parity.traps.trap import Trap

CE, NLL, MSE = ("cross_entropy",), ("nll_loss",), ("mse_loss",)
MEANS = ("cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
Loss = Callable[..., Tensor]
Options = dict[str, Any]
# From the loss's function, its arguments and its options to the loss with the mistake; None where it changes nothing.
Planted = Callable[[Loss, Values, Options], Tensor | None]

LOSS_PAGES = "torch.nn.functional, optax.losses"


def other(**values: Any) -> Planted:
    """The same loss with other options."""
    return lambda function, args, kw: function(*args[:2], **{**kw, **values})


def reduced(before: str, then: str) -> Planted:
    """Another reduction, if it is `before`."""

    def plant(function: Loss, args: Values, kw: Options) -> Tensor | None:
        return function(*args, **{**kw, "reduction": then}) if kw.get("reduction", "mean") == before else None

    return plant


def per_example(function: Loss, args: Values, kw: Options) -> Tensor | None:
    """Summed over all but the examples, and averaged over these."""
    if kw.get("reduction", "mean") != "mean":
        return None
    return function(*args, **{**kw, "reduction": "sum"}) / len(args[0])


def unweighted_mean(function: Loss, args: Values, kw: Options) -> Tensor | None:
    """Weighted losses averaged over the number of examples."""
    if kw.get("weight") is None or kw.get("reduction", "mean") != "mean":
        return None
    return function(*args[:2], **{**kw, "reduction": "none"}).mean()


def smoothing_weighted_by_own(_: Loss, args: Values, kw: Options) -> Tensor | None:
    """Every example weighted by its own class, smoothed or not, as where weights multiply optax's losses."""
    weight, smoothing = kw.get("weight"), kw.get("label_smoothing", 0.0)
    if weight is None or not smoothing or kw.get("reduction", "mean") != "mean":
        return None
    losses = F.cross_entropy(args[0], args[1], label_smoothing=smoothing, reduction="none")
    own = weight[args[1]]
    return (losses * own).sum() / own.sum()


def ignored_counted(function: Loss, args: Values, kw: Options) -> Tensor | None:
    """Ignored labels add nothing, and count in the mean."""
    if kw.get("reduction", "mean") != "mean":
        return None
    return function(*args[:2], **{**kw, "reduction": "none"}).mean()


def ignored_wraps(function: Loss, args: Values, kw: Options) -> Tensor | None:
    """A negative label taken from the end, as indexing does."""
    labels, classes = args[1], args[0].shape[1 if args[0].ndim > 1 else 0]
    if labels.is_floating_point() or not (labels < 0).any():
        return None
    return function(args[0], labels % classes, **{n: v for n, v in kw.items() if n != "ignore_index"})


def twice(change: Callable[[Tensor], Tensor]) -> Planted:
    """Probabilities given where logits are expected."""
    return lambda function, args, kw: function(change(args[0]), *args[1:], **kw)


def masked_mean(_: Loss, args: Values, kw: Options) -> Tensor | None:
    """The losses that a mask keeps, divided by the number of all losses."""
    total, count = made(args[0], "sum"), args[1] if len(args) > 1 else kw.get("other")
    counted = made(count, "sum", "clamp", "clamp_min") if isinstance(count, Tensor) else None
    if total is None or counted is None or len(total.args) > 1 or total.kw:
        return None
    product = made(total[0], "mul")
    if product is None or not isinstance(product.argument(1, "other"), Tensor):
        return None
    masks = [part for part in product.tensors if bool(((part == 0) | (part == 1)).all())]
    return total[0].mean() if masks and any(part.ndim for part in masks) else None


def huber(_: Loss, args: Values, kw: Options) -> Tensor | None:
    options = {"delta": kw.get("beta", 1.0), "reduction": kw.get("reduction", "mean")}
    return F.huber_loss(*args[:2], **options)


LOSSES = (
    Trap(
        "loss-mean-over-padding",
        "loss",
        ("div", "__truediv__"),
        masked_mean,
        "the loss is divided by the number of all positions; PyTorch's by the number of those that the mask keeps",
        "divide by what counts: (losses * mask).sum() / mask.sum()",
        "NovaSky-AI/SkyRL#462",
    ),
    Trap(
        "loss-class-weights-missing",
        "loss",
        CE + NLL,
        other(weight=None),
        "no class weights",
        "pass weight= to ports.losses.cross_entropy",
        "torch.nn.CrossEntropyLoss: weight",
        arguments=("weight",),
    ),
    Trap(
        "loss-weighted-mean-over-n",
        "loss",
        CE + NLL,
        unweighted_mean,
        "the weighted mean divides by the number of examples; PyTorch divides by the sum of their weights",
        "use ports.losses.cross_entropy with weight=",
        "torch.nn.CrossEntropyLoss: weight",
    ),
    Trap(
        "loss-smoothing-missing",
        "loss",
        CE,
        other(label_smoothing=0.0),
        "no label smoothing",
        "pass label_smoothing= to ports.losses.cross_entropy",
        "torch.nn.CrossEntropyLoss: label_smoothing",
        arguments=("label_smoothing",),
    ),
    Trap(
        "loss-smoothing-weighted-by-own",
        "loss",
        CE,
        smoothing_weighted_by_own,
        "every example is weighted by its own class; PyTorch weights the smoothed part by each class",
        "use ports.losses.cross_entropy with weight= and label_smoothing=",
        "torch.nn.CrossEntropyLoss: label_smoothing",
    ),
    Trap(
        "loss-ignored-counted",
        "loss",
        CE + NLL,
        ignored_counted,
        "ignored labels count in the mean; PyTorch's mean goes over the others",
        "use ports.losses.cross_entropy with ignore_index=",
        "torch.nn.CrossEntropyLoss: ignore_index",
    ),
    Trap(
        "loss-ignored-wraps",
        "loss",
        CE + NLL,
        ignored_wraps,
        "an ignored label is taken as a class counted from the end",
        "use ports.losses.cross_entropy with ignore_index=",
        "torch.nn.CrossEntropyLoss: ignore_index",
    ),
    Trap(
        "loss-softmax-twice",
        "loss",
        CE,
        twice(lambda x: x.softmax(1 if x.ndim > 1 else 0)),
        "the loss gets probabilities; it expects logits",
        "leave out the softmax before the loss",
        LOSS_PAGES,
    ),
    Trap(
        "loss-sigmoid-twice",
        "loss",
        ("binary_cross_entropy_with_logits",),
        twice(torch.sigmoid),
        "the loss gets probabilities; it expects logits",
        "leave out the sigmoid before the loss",
        LOSS_PAGES,
    ),
    Trap(
        "loss-pos-weight-missing",
        "loss",
        ("binary_cross_entropy_with_logits",),
        other(pos_weight=None),
        "no weight of the positive class",
        "multiply the positive part by pos_weight",
        LOSS_PAGES,
    ),
    Trap(
        "loss-half-square",
        "loss",
        MSE,
        lambda function, args, kw: function(*args, **kw) / 2,
        "half of the squared error (optax.l2_loss)",
        "use optax.squared_error",
        LOSS_PAGES,
    ),
    Trap(
        "loss-sum-for-mean",
        "loss",
        MEANS + BINARY,
        reduced("mean", "sum"),
        "the sum; PyTorch takes the mean",
        "take the mean",
        LOSS_PAGES,
    ),
    Trap(
        "loss-mean-for-sum",
        "loss",
        MEANS + BINARY,
        reduced("sum", "mean"),
        "the mean; PyTorch takes the sum",
        "take the sum",
        LOSS_PAGES,
    ),
    Trap(
        "loss-summed-per-example",
        "loss",
        MEANS + BINARY,
        per_example,
        "the loss is summed over each example, then averaged over the examples; PyTorch averages over all numbers",
        "take the mean over all axes",
        LOSS_PAGES,
    ),
    Trap(
        "loss-kl-mean-over-numbers",
        "loss",
        ("kl_div",),
        reduced("batchmean", "mean"),
        "the divergence is averaged over all numbers; PyTorch averages over examples (batchmean)",
        "sum over all axes, then divide by the number of examples",
        "torch.nn.KLDivLoss: reduction",
    ),
    Trap(
        "loss-kl-mean-over-examples",
        "loss",
        ("kl_div",),
        reduced("mean", "batchmean"),
        "the divergence is averaged over examples; PyTorch averages over all numbers (mean)",
        "take the mean over all axes",
        "torch.nn.KLDivLoss: reduction",
    ),
    Trap(
        "loss-huber-for-smooth-l1",
        "loss",
        ("smooth_l1_loss",),
        huber,
        "the Huber loss; PyTorch's smooth L1 is that over beta",
        "divide optax.huber_loss(…, delta=beta) by beta",
        "torch.nn.HuberLoss, optax.huber_loss",
    ),
    Trap(
        "loss-smooth-l1-beta-1",
        "loss",
        ("smooth_l1_loss",),
        other(beta=1.0),
        "beta is the default, 1",
        "divide optax.huber_loss(…, delta=beta) by beta",
        "torch.nn.SmoothL1Loss, optax.huber_loss",
    ),
    Trap(
        "loss-huber-delta-1",
        "loss",
        ("huber_loss",),
        other(delta=1.0),
        "delta is the default, 1",
        "pass delta= to optax.huber_loss, as PyTorch has it",
        "torch.nn.HuberLoss, optax.huber_loss",
        arguments=("delta",),
    ),
)

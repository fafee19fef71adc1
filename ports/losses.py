"""PyTorch's losses in JAX: `torch.nn.functional.cross_entropy` with its options, and averages of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from ports.errors import UserError
from ports.objective import UNLABELLED


def classification(outputs: Any, labels: Any) -> Any:
    """The mean cross-entropy of logits. For feature maps, which have no labels, the sum of their mean squares.

    Args:
        outputs: logits (batch, classes), or feature maps.
        labels: integers (batch,).
    """
    if isinstance(outputs, jax.Array):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()
    return sum((jnp.square(value).mean() for value in outputs), jnp.zeros(()))


def next_token(logits: Any, following: Any) -> Any:
    """The mean cross-entropy over the tokens that follow each position.

    Args:
        logits: (batch, length, tokens).
        following: integers (batch, length); −100 at positions that do not count, such as those after a text.
    """
    return cross_entropy(logits, following)


def segmentation(outputs: Any, labels: Any) -> Any:
    """The mean cross-entropy of the labelled pixels; half of the auxiliary head's is added, as torchvision trains.

    Args:
        outputs: logits (batch, height, width, classes), or a dict of them: `out`, and `aux` where there is such a head.
        labels: integers (batch, height, width); 255 for pixels that do not count.
    """
    if isinstance(outputs, jax.Array):
        return cross_entropy(outputs, labels, ignore_index=UNLABELLED)
    loss = cross_entropy(outputs["out"], labels, ignore_index=UNLABELLED)
    if "aux" in outputs:
        loss = loss + 0.5 * cross_entropy(outputs["aux"], labels, ignore_index=UNLABELLED)
    return loss


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Any:
    """`torch.nn.functional.cross_entropy` with classes on the last axis.

    The mean is over the labels that are not ignored; with class weights it divides by the sum of the weights. (optax
    has no weights and no ignored label, and takes a label of −100 as the class C − 100.)

    Args:
        logits: (..., classes).
        labels: integers (...).
        weight: (classes,), the weight of each class.
        ignore_index: a label that does not count.
        label_smoothing: the part of the target that is spread over all classes (Szegedy et al., arXiv:1512.00567).
        reduction: `mean`, `sum` or `none`.

    Raises:
        UserError: shapes that do not fit, an unknown reduction, a label out of range. In a compiled program the loss is
            NaN for such a label.
    """
    if logits.shape[:-1] != labels.shape:
        raise UserError(f"cross_entropy: labels: got {labels.shape}, expected {logits.shape[:-1]} for {logits.shape}")
    if reduction not in ("mean", "sum", "none"):
        raise UserError(f"cross_entropy: reduction: got {reduction!r}, expected mean, sum or none")
    counts, classes = labels != ignore_index, logits.shape[-1]
    _require_labels(labels, classes, ignore_index)
    # JAX takes a negative index from the end, and gives NaN for one that is too large.
    chosen = jnp.where(counts, jnp.where(labels < 0, classes, labels), 0)
    weight = jnp.ones(logits.shape[-1], logits.dtype) if weight is None else jnp.asarray(weight, logits.dtype)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    own = jnp.where(counts, weight[chosen], 0)
    losses = -own * jnp.take_along_axis(log_p, chosen[..., None], axis=-1)[..., 0]
    if label_smoothing:
        spread = jnp.where(counts, -(weight * log_p).sum(-1), 0) / logits.shape[-1]
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if reduction == "none":
        return losses
    return losses.sum() / own.sum() if reduction == "mean" else losses.sum()


def _require_labels(labels: Any, classes: int, ignored: int) -> None:
    if isinstance(labels, Tracer):  # while JAX compiles, the labels are not known yet
        return
    values = np.asarray(labels)
    wrong = values[(values != ignored) & ((values < 0) | (values >= classes))]
    if wrong.size:
        raise UserError(
            f"cross_entropy: labels: got {wrong[0]}, expected 0 to {classes - 1}, or {ignored}, which does not count"
        )


def ema(average: Any, params: Any, decay: float = 0.999, count: Any = None) -> Any:
    """`torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(decay)`: the first average is a copy.

    (optax's starts at zero and is corrected for it.)

    Args:
        count: the number of averages taken before; None if `average` already holds some.
    """
    new = jax.tree.map(lambda a, p: a + (p - a) * (1 - decay), average, params)
    if count is None:
        return new
    return jax.tree.map(lambda p, a: jnp.where(count == 0, p, a), params, new)

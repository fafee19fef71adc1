"""Known mistakes in attention, recurrence and the network's inputs. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.functions import ATTENTION, RECURRENT
from parity.traps.planting import INPUT, Values, with_argument
from parity.traps.trap import Argument, Trap

PIXELS_PAGE = "torchvision.models, Using the pre-trained models"

PIXEL_MEAN, PIXEL_STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def _opposite(mask: Any) -> Any:
    return ~mask if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask


def _directions(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """The output of a bidirectional layer with its two halves changed."""

    def plant(function: Callable[..., Any], args: Values, kw: dict[str, Any]) -> Any:
        output, *rest = function(*args, **kw)
        layers, bidirectional, batch_first = args[4], args[7], args[8]
        if not bidirectional or layers != 1:
            return None
        time = 1 if batch_first else 0
        ahead, back = output.chunk(2, -1)
        return change(ahead, back.flip(time)) if change is _kept else torch.cat([back, ahead], -1), *rest

    return plant


def _kept(ahead: Tensor, back: Tensor) -> Tensor:
    return torch.cat([ahead, back], -1)


def _pixels(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """Of images with three channels."""
    return lambda _, args, kw: change(args[0]) if args[0].ndim == 4 and args[0].shape[1] == 3 else None


def _channelwise(t: Tensor) -> Tensor:
    return t.double().reshape(3, 1, 1)


ATTENTION_CALLS = (
    Trap(
        "attention-not-causal",
        "between",
        ATTENTION,
        with_argument(5, "is_causal", False, False),
        "the attention sees later keys; PyTorch's is causal",
        "pass is_causal=True, or a mask from nn.make_causal_mask",
        "torch.nn.functional.scaled_dot_product_attention, jax.nn.dot_product_attention",
        arguments=("is_causal",),
    ),
    Trap(
        "attention-unscaled",
        "between",
        ATTENTION,
        with_argument(6, "scale", None, 1.0),
        "no scale 1 / √depth",
        "pass scale= only where PyTorch does: the default, None, is 1 / √depth",
        "Vaswani et al. 2017, section 3.2.1",
        arguments=("scale",),
    ),
    Trap(
        "attention-mask-sense",
        "between",
        ATTENTION,
        with_argument(3, "attn_mask", None, _opposite),
        "the mask is inverted",
        "leave the mask as it is: in both functions True allows attention",
        "torch.nn.MultiheadAttention, flax.nnx.MultiHeadAttention",
    ),
    Trap(
        "attention-mask-lost",
        "between",
        ATTENTION,
        with_argument(3, "attn_mask", None, None),
        "there is no mask",
        "pass mask=, or bias= for an attn_mask of floats",
        "torch.nn.MultiheadAttention, flax.nnx.MultiHeadAttention",
    ),
)

DIRECTIONS_AND_INPUTS = (
    Trap(
        "directions-exchanged",
        "between",
        RECURRENT,
        _directions(lambda a, b: b),
        "the backward half is first",
        "put the forward half first, as nn.Bidirectional does",
        "torch.nn.LSTM: bidirectional, flax.linen.Bidirectional",
    ),
    Trap(
        "backward-half-reversed",
        "between",
        RECURRENT,
        _directions(_kept),
        "the backward half is in the order of its computation, RNN's default",
        "pass keep_order=True to the backward nn.RNN",
        "flax.linen.RNN: reverse, keep_order",
        arguments=(Argument("keep_order", "RNN", True),),
    ),
    Trap(
        "input-bgr",
        "between",
        (INPUT,),
        _pixels(lambda x: x.flip(1)),
        "BGR for RGB",
        "keep the channels in the order RGB",
        PIXELS_PAGE,
    ),
    Trap(
        "input-times-255",
        "between",
        (INPUT,),
        lambda _, a, kw: a[0] * 255,
        "the input is multiplied by 255",
        "leave out the factor 255",
        PIXELS_PAGE,
    ),
    Trap(
        "input-by-255",
        "between",
        (INPUT,),
        lambda _, a, kw: a[0] / 255,
        "the input is divided by 255",
        "leave out the division by 255",
        PIXELS_PAGE,
    ),
    Trap(
        "input-normalised-again",
        "between",
        (INPUT,),
        _pixels(lambda x: (x - _channelwise(PIXEL_MEAN)) / _channelwise(PIXEL_STD)),
        "ImageNet's mean and standard deviation are taken once more",
        "normalise the input in one place only",
        PIXELS_PAGE,
    ),
)

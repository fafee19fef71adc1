"""More known mistakes in single layers: transposed convolutions, other norms, attention, recurrence, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.traps.planting import Trap, setting, tensor
from parity.traps.wrappers import Around, Instead, constant_statistics, normalised, same_transposed

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UP = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm)
ATTENTION, RECURRENT = (nn.MultiheadAttention,), (nn.LSTM, nn.GRU, nn.RNN)
PADDING = "jnp.pad with the mode, then padding='VALID'"
UP_PADDING = "Flax's padding is kernel − 1 − PyTorch's"


def _instead(function: Callable[..., Any], **settings: Any) -> Callable[[Any], nn.Module]:
    return lambda layer: Instead(layer, lambda own, *args, **kw: function(own, *args, **settings, **kw))


def _mode(own: tuple[str, ...], new: str) -> Callable[[Any], nn.Module | None]:
    return lambda conv: setting(padding_mode=new)(conv) if conv.padding_mode in own else None


def _reversed(name: str) -> Callable[[Any], nn.Module | None]:
    return lambda layer: setting(**{name: tuple(getattr(layer, name))[::-1]})(layer)


def _other_padding(layer: Any) -> nn.Module | None:
    other = tuple(k - 1 - p for k, p in zip(layer.kernel_size, layer.padding, strict=True))
    return setting(padding=other)(layer)


def _groups(number: Callable[[Any], int]) -> Callable[[Any], nn.Module | None]:
    return lambda norm: setting(num_groups=number(norm))(norm)


def _rows(layer: Any) -> nn.Module:
    """Over the rows, axis 1 of channels-last images, where PyTorch has the channels."""
    return Around(layer, lambda x: x.transpose(1, 2), lambda y: y.transpose(1, 2))


def _without(name: str) -> Callable[[Any], nn.Module]:
    """Attention without one of its masks."""

    def attend(layer: Any, *args: Any, **kw: Any) -> Any:
        if kw.get(name) is None:
            raise ValueError("has none")
        return layer(*args, **{**kw, name: None, "is_causal": False})

    return lambda layer: Instead(layer, attend)


def _opposite(layer: Any) -> nn.Module:
    def attend(own: Any, *args: Any, **kw: Any) -> Any:
        masks = {n: ~kw[n] for n in ("attn_mask", "key_padding_mask") if kw.get(n) is not None}
        if not masks:
            raise ValueError("has none")
        return own(*args, **{**kw, **masks})

    return Instead(layer, attend)


def _unscaled(layer: Any) -> nn.Module:
    """The scores times √depth."""
    factor, width = (layer.embed_dim // layer.num_heads) ** 0.5, layer.embed_dim
    with torch.no_grad():
        layer.in_proj_weight[:width] *= factor
        layer.in_proj_bias[:width] *= factor
    return layer


def _exchanged(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _time(x: Tensor) -> Tensor:
    return x.flip(1)


def _cumulative(layer: Any) -> nn.Module | None:
    return setting(momentum=0.1)(layer) if layer.momentum is None else None


def _frozen(layer: Any) -> nn.Module:
    return layer.requires_grad_(False)


def _scaled(layer: Any) -> nn.Module:
    return Around(layer, after=lambda y: y * layer.embedding_dim**0.5)


MORE = (
    Trap("conv-stride-two", CONV, lambda c: setting(stride=(2,) * len(c.stride))(c), "the stride is 2", "strides"),
    Trap("conv-stride-exchanged", CONV, _reversed("stride"), "height's and width's stride are exchanged", "strides"),
    Trap("conv-padding-exchanged", CONV, _reversed("padding"), "height's and width's padding are exchanged", "padding"),
    Trap(
        "conv-padding-zeros",
        CONV,
        _mode(("reflect", "replicate", "circular"), "zeros"),
        "zeros for PyTorch's padding_mode",
        PADDING,
    ),
    Trap("conv-padding-circular", CONV, _mode(("reflect", "replicate"), "circular"), "the padding goes round", PADDING),
    Trap("conv-padding-reflect", CONV, _mode(("replicate", "circular"), "reflect"), "the padding reflects", PADDING),
    Trap(
        "conv-transpose-flipped",
        UP,
        tensor("weight", lambda w: w.flip(tuple(range(2, w.ndim)))),
        "the kernel is flipped: Flax's does not flip it without transpose_kernel",
        "transpose_kernel=True",
    ),
    Trap(
        "conv-transpose-padding-copied",
        UP,
        _other_padding,
        "PyTorch's padding was copied",
        UP_PADDING,
    ),
    Trap("conv-transpose-padding-none", UP, lambda c: setting(padding=(0,) * len(c.padding))(c), "'VALID'", UP_PADDING),
    Trap(
        "conv-transpose-output-padding-lost",
        UP,
        lambda c: setting(output_padding=(0,) * len(c.output_padding))(c),
        "output_padding is missing",
        "add it to the padding behind",
    ),
    Trap("conv-transpose-same", UP[1:2], _instead(same_transposed), "the layer pads like 'SAME'", UP_PADDING),
    Trap("norm-epsilon-1e-5", NORM, setting(eps=1e-5), "epsilon is 1e-5", "pass epsilon as PyTorch's layer has it"),
    Trap("group-norm-32-groups", NORM[1:2], _groups(lambda _: 32), "32 groups, Flax's default", "num_groups"),
    Trap("group-norm-one-group", NORM[1:2], _groups(lambda _: 1), "one group of all channels", "num_groups"),
    Trap("group-norm-per-channel", NORM[1:2], _groups(lambda n: n.num_channels), "a group a channel", "num_groups"),
    Trap(
        "group-norm-group-size",
        NORM[1:2],
        _groups(lambda n: n.num_channels // n.num_groups),
        "the number of groups was given as their size",
        "num_groups",
    ),
    Trap(
        "layer-norm-over-time",
        NORM[:1],
        _instead(normalised, time=True),
        "normalised over all axes but the batch; PyTorch's over normalized_shape",
        "reduction_axes=-1",
    ),
    Trap("layer-norm-keeps-mean", NORM[:1], _instead(normalised, mean=False), "RMSNorm for LayerNorm", "nn.LayerNorm"),
    Trap("layer-norm-unbiased", NORM[:1], _instead(normalised, ddof=1), "the variance is over n − 1", "over n"),
    Trap("bn-axis", BATCH_NORM[1:2], _rows, "normalised over axis 1, PyTorch's axis of channels", "axis=-1"),
    Trap(
        "bn-momentum-cumulative",
        BATCH_NORM,
        _cumulative,
        "the momentum is 0.9; with momentum=None PyTorch takes the mean of all batches",
        "count batches: the weight of the new is 1 / count",
    ),
    Trap("embedding-scaled", (nn.Embedding,), _scaled, "the embedding is multiplied by √width", "do not scale it"),
    Trap(
        "attention-mask-opposite",
        ATTENTION,
        _opposite,
        "the masks' sense is opposite",
        "Flax's mask is true where seen",
    ),
    Trap("attention-padding-seen", ATTENTION, _without("key_padding_mask"), "padding is attended to", "pass mask"),
    Trap("attention-future-seen", ATTENTION, _without("attn_mask"), "attn_mask is missing", "pass mask"),
    Trap("attention-scores-unscaled", ATTENTION, _unscaled, "the scores are not divided by √depth", "divide them"),
    Trap("recurrent-reversed", RECURRENT, lambda r: Around(r, _time, _time), "time runs backward", "reverse=False"),
    Trap(
        "recurrent-over-batch",
        RECURRENT,
        lambda r: Around(r, _exchanged, _exchanged),
        "the steps go over the batch",
        "time_major as PyTorch's batch_first says",
    ),
    Trap(
        "gru-hidden-bias-lost",
        (nn.GRU,),
        tensor("bias_hh_l0", lambda b: torch.cat([b[: len(b) // 3 * 2], 0 * b[len(b) // 3 * 2 :]])),
        "the new gate has no bias at the hidden state, as NNX's GRUCell; PyTorch multiplies it by the reset gate",
        "linen.GRUCell, or a cell whose hidden layer has a bias",
    ),
    Trap(
        "bn-statistics-constant",
        BATCH_NORM,
        _instead(constant_statistics),
        "no gradient flows through the batch's statistics; in PyTorch it does",
        "no stop_gradient",
        gradient=True,
    ),
    Trap(
        "embedding-padding-gradient",
        (nn.Embedding,),
        setting(padding_idx=None),
        "the row of padding gets a gradient; PyTorch's does not",
        "set its gradient to zero",
        gradient=True,
    ),
    Trap(
        "parameters-frozen",
        (*CONV, *UP, nn.Linear, *BATCH_NORM, *NORM, nn.Embedding),
        _frozen,
        "the layer's parameters get no gradient; PyTorch's do",
        "no stop_gradient around them",
        gradient=True,
    ),
    Trap(
        "layer-gradient-stopped",
        (*CONV, *UP, nn.Linear, *BATCH_NORM, *NORM),
        lambda layer: Around(layer, after=Tensor.detach),
        "the gradient stops behind the layer",
        "no stop_gradient around it",
        gradient=True,
    ),
)

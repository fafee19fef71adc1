"""Known mistakes in embeddings, attention and recurrent layers. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.traps.layers.layer_types import ATTENTION, EMBEDDING, RECURRENT
from parity.traps.layers.wrappers import AnotherFunction, Around
from parity.traps.planting import tensor
from parity.traps.trap import Argument, Trap

ATTENTION_PAGES = "torch.nn.MultiheadAttention, flax.nnx.MultiHeadAttention"


def _without(name: str) -> Callable[[Any], nn.Module]:
    """Attention that lacks one of its masks."""

    def attend(layer: Any, *args: Any, **kw: Any) -> Any:
        if kw.get(name) is None:
            raise ValueError("has none")
        return layer(*args, **{**kw, name: None, "is_causal": False})

    return lambda layer: AnotherFunction(layer, attend)


def _opposite(layer: Any) -> nn.Module:
    def attend(own: Any, *args: Any, **kw: Any) -> Any:
        masks = {n: ~kw[n] for n in ("attn_mask", "key_padding_mask") if kw.get(n) is not None}
        if not masks:
            raise ValueError("has none")
        return own(*args, **{**kw, **masks})

    return AnotherFunction(layer, attend)


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


def _scaled(layer: Any) -> nn.Module:
    return Around(layer, after=lambda y: y * layer.embedding_dim**0.5)


SEQUENCES = (
    Trap(
        "embedding-scaled",
        "layer",
        EMBEDDING,
        _scaled,
        "the embedding is multiplied by √width",
        "leave out the factor √width",
        "Vaswani et al. 2017, section 3.4",
    ),
    Trap(
        "attention-mask-opposite",
        "layer",
        ATTENTION,
        _opposite,
        "the masks are inverted",
        "invert the mask: Flax's is True where attention is allowed, PyTorch's where it is not",
        ATTENTION_PAGES,
    ),
    Trap(
        "attention-padding-seen",
        "layer",
        ATTENTION,
        _without("key_padding_mask"),
        "padding is attended to",
        "pass mask=, False at the keys that key_padding_mask hides",
        ATTENTION_PAGES,
    ),
    Trap(
        "attention-future-seen",
        "layer",
        ATTENTION,
        _without("attn_mask"),
        "attn_mask is missing",
        "pass mask=, False where attn_mask hides a key",
        ATTENTION_PAGES,
    ),
    Trap(
        "attention-scores-unscaled",
        "layer",
        ATTENTION,
        _unscaled,
        "the scores are not divided by √depth",
        "divide the scores by √depth",
        ATTENTION_PAGES,
    ),
    Trap(
        "recurrent-reversed",
        "layer",
        RECURRENT,
        lambda r: Around(r, _time, _time),
        "time runs backward",
        "pass reverse=False to nn.RNN",
        "torch.nn.LSTM: batch_first, flax.linen.RNN: time_major",
        arguments=(Argument("reverse", "RNN", False),),
    ),
    Trap(
        "recurrent-over-batch",
        "layer",
        RECURRENT,
        lambda r: Around(r, _exchanged, _exchanged),
        "the steps go over the batch",
        "pass time_major=False for PyTorch's batch_first=True, and True for False",
        "torch.nn.LSTM: batch_first, flax.linen.RNN: time_major",
        arguments=(Argument("time_major", "RNN"),),
    ),
    Trap(
        "gru-hidden-bias-lost",
        "layer",
        (nn.GRU,),
        tensor("bias_hh_l0", lambda b: torch.cat([b[: len(b) // 3 * 2], 0 * b[len(b) // 3 * 2 :]])),
        "the new gate has no bias at the hidden state, as in NNX's GRUCell; PyTorch multiplies it by the reset gate",
        "use linen.GRUCell, or write an NNX cell whose hidden layer has a bias",
        "torch.nn.GRU, flax.linen.GRUCell",
    ),
)

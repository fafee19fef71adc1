"""Known mistakes in routers of experts, and in softmaxes. A new mistake is a new row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.parts import Call, call_of, is_vector, made, orders, through
from parity.traps.planting import Values
from parity.traps.trap import Trap


def _chosen(function: Any, args: Values, kw: dict[str, Any]) -> tuple[Call, Any] | None:
    """The scores of all experts, and what `topk` gives for them."""
    scores = made(args[0], "softmax", "sigmoid")
    return None if scores is None else (scores, function(*args, **kw))


def _with_values(found: Any, values: Tensor) -> Any:
    return type(found)((values, found.indices))


def _softmax_of_chosen(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The softmax goes over the chosen experts alone."""
    found = _chosen(function, args, kw)
    if found is None or found[0].name != "softmax":
        return None
    logits = found[0][0].gather(-1, found[1].indices)
    return _with_values(found[1], logits.softmax(-1))


def _logits(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The chosen experts' logits are their weights."""
    found = _chosen(function, args, kw)
    return None if found is None else _with_values(found[1], found[0][0].gather(-1, found[1].indices))


def _scored_by(score: Callable[[Tensor], Tensor], other: str) -> Callable[..., Any]:
    """The scores by another function, if they were computed by `other`."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Any:
        found = _chosen(function, args, kw)
        if found is None or found[0].name != other:
            return None
        return _with_values(found[1], score(found[0][0]).gather(-1, found[1].indices))

    return plant


def _renormalised(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The weights of the chosen experts sum to one."""
    found = _chosen(function, args, kw)
    if found is None:
        return None
    values = found[1].values
    return _with_values(found[1], values / values.sum(-1, keepdim=True))


def _not_renormalised(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The weights as they were chosen."""
    total = made(args[1] if len(args) > 1 else kw["other"], "sum", "add", "clamp")
    if total is not None and total.name != "sum":
        total = made(total[0], "sum")
    chosen = made(args[0], "topk", "gather")
    return args[0] if total is not None and chosen is not None and through(total[0]) is through(args[0]) else None


def _softmax_of_all(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The softmax goes over all experts, and the best results are taken."""
    chosen = made(args[0], "topk")
    if chosen is None or call_of(through(args[0])).part != 0:  # pyright: ignore[reportOptionalMemberAccess]
        return None
    return chosen.function(chosen[0].softmax(-1), *chosen.args[1:], **chosen.kw).values


def _fewer(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The last of the chosen experts has no weight."""
    found = function(*args, **kw)
    if args[0].ndim < 2 or found.values.shape[-1] < 2:
        return None
    values = torch.cat([found.values[..., :-1], torch.zeros_like(found.values[..., -1:])], -1)
    return _with_values(found, values)


def _biased(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
    """The weights are the scores with the bias by which experts are chosen."""
    scores, indices = through(args[0]), made(args[2] if len(args) > 2 else kw["index"], "topk")
    biased = None if indices is None else made(indices[0], "add")
    if biased is None or not any(through(part) is scores for part, _ in orders(biased)):
        return None
    return indices[0].gather(-1, args[2] if len(args) > 2 else kw["index"]) if indices else None


def _bias_lost(function: Any, args: Values, kw: dict[str, Any]) -> Any:
    """The experts are chosen by the scores without their bias."""
    biased = made(args[0], "add")
    if biased is None:
        return None
    for scores, bias in orders(biased):
        if is_vector(bias) and made(scores, "sigmoid", "softmax"):
            return function(scores, *args[1:], **kw)
    return None


def _again(function: Any, args: Values, kw: dict[str, Any]) -> Tensor:
    """The same function applied to its own result."""
    return function(function(*args, **kw), *args[1:], **{name: value for name, value in kw.items() if name != "input"})


def _row(name: str, where: Sequence[str], plant: Callable[..., Any], text: str, mend: str, source: str) -> Trap:
    return Trap(name, "between", tuple(where), plant, text, mend, source)


EXPERTS = (
    _row(
        "softmax-twice",
        ("softmax",),
        _again,
        "the softmax is taken twice",
        "take the softmax once",
        "huggingface/transformers#45132",
    ),
    _row(
        "router-softmax-of-chosen",
        ("topk",),
        _softmax_of_chosen,
        "the softmax goes over the chosen experts; PyTorch's model takes the softmax over all experts and then chooses",
        "take the softmax over all experts first, then jax.lax.top_k",
        "lablup/mlxcel#391",
    ),
    _row(
        "router-softmax-of-all",
        ("softmax",),
        _softmax_of_all,
        "the softmax goes over all experts; PyTorch's model takes that of the chosen ones",
        "take jax.lax.top_k first, then the softmax of the chosen logits",
        "NVIDIA/TensorRT-LLM#2752",
    ),
    _row(
        "router-weights-are-logits",
        ("topk",),
        _logits,
        "the experts' weights are the router's logits",
        "take the softmax or sigmoid of the logits, as PyTorch's model does",
        "sgl-project/sglang#35160",
    ),
    _row(
        "router-softmax-for-sigmoid",
        ("topk",),
        _scored_by(lambda x: x.softmax(-1), "sigmoid"),
        "the router's scores are a softmax; PyTorch's are sigmoids",
        "use nn.sigmoid for the router's scores",
        "MetaX-MACA/vLLM-metax#270",
    ),
    _row(
        "router-sigmoid-for-softmax",
        ("topk",),
        _scored_by(torch.sigmoid, "softmax"),
        "the router's scores are sigmoids; PyTorch's are a softmax",
        "use nn.softmax for the router's scores",
        "NVIDIA/TensorRT-Model-Connect#669",
    ),
    _row(
        "router-renormalised",
        ("topk",),
        _renormalised,
        "the weights of the chosen experts are divided by their sum; PyTorch's are not",
        "leave the weights as they are where norm_topk_prob is false",
        "flashinfer-ai/flashinfer#2889",
    ),
    _row(
        "router-not-renormalised",
        ("div",),
        _not_renormalised,
        "the weights of the chosen experts are not divided by their sum",
        "divide by the sum: weights / weights.sum(-1, keepdims=True)",
        "pytorch/torchtitan#1448",
    ),
    _row(
        "router-bias-in-weights",
        ("gather",),
        _biased,
        "the bias that experts are chosen with is part of their weights",
        "choose by scores + bias, but take the weights from the scores alone",
        "huggingface/transformers#41647",
    ),
    _row(
        "router-bias-missing",
        ("topk",),
        _bias_lost,
        "the experts are chosen without the bias of the router",
        "choose the experts with jax.lax.top_k(scores + bias, k)",
        "DeepSeek 2024",
    ),
    replace(
        _row(
            "router-one-expert-less",
            ("topk",),
            _fewer,
            "one expert less is chosen",
            "pass PyTorch's k to jax.lax.top_k",
            "JieShibo/MoLE#7",
        ),
        arguments=("k",),
    ),
)

"""Known mistakes in norms that are written as operations, or called as functions. A new mistake is a new row.

A norm is recognised by what it computes: x, or x less its mean, divided by the root of its mean square and an epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parity.traps.operations.parts import Call, is_vector, made, name_of, number, orders, read_once, same, through
from parity.traps.planting import Values
from parity.traps.trap import LAYER, Argument, Trap


@dataclass(frozen=True)
class Norm:
    """One call of a norm.

    Attributes:
        x: the numbers that are normalised over the axes `dim`.
        centred: whether the mean is subtracted.
        inside: whether epsilon is inside the root.
        scale, plus: the factor, and whether one is added to it.
    """

    x: Tensor
    dim: tuple[int, ...]
    eps: float
    centred: bool
    inside: bool = True
    unbiased: bool = False
    scale: Any = None
    plus: float = 0.0
    bias: Any = None

    def without_scale(self, x: Tensor | None = None) -> Tensor:
        """The normalised numbers."""
        x = self.x if x is None else x
        mean = x.mean(self.dim, keepdim=True)
        number = torch.Size(x.shape[d] for d in self.dim).numel()
        centre = mean if self.centred else 0.0
        variance = (x - centre).square().sum(self.dim, keepdim=True) / (number - 1 if self.unbiased else number)
        root = (variance + self.eps).sqrt() if self.inside else variance.sqrt() + self.eps
        return (x - centre) / root

    def value(self, x: Tensor | None = None) -> Tensor:
        """The result of the norm, for another x if one is given."""
        y = self.without_scale(x)
        y = y if self.scale is None else y * (self.scale + self.plus)
        return y if self.bias is None else y + self.bias


def _dims(call: Call, x: Tensor) -> tuple[int, ...] | None:
    dim = call.argument(1, "dim")
    dims = (dim,) if isinstance(dim, int) else dim
    return tuple(d % x.ndim for d in dims) if isinstance(dims, tuple | list) and dims else None


def _squared(x: Any) -> Tensor | None:
    """The tensor whose square is `x`."""
    call = made(x, "square", "pow", "mul")
    if call is None:
        return None
    other = call.argument(1, "exponent" if call.name == "pow" else "other")
    if call.name == "square" or (call.name == "pow" and number(other) == 2):
        return through(call[0])
    return through(call[0]) if call.name == "mul" and other is call[0] else None


def _centred(x: Any, dim: tuple[int, ...]) -> Tensor | None:
    """The tensor that gives `x` when its mean over these axes is subtracted."""
    call = made(x, "sub")
    mean = call and made(call.argument(1, "other"), "mean")
    if call is None or not mean or through(mean[0]) is not through(call[0]):
        return None
    return through(call[0]) if _dims(mean, call[0]) == dim else None


def spread(x: Any) -> Norm | None:
    """The norm with the mean square, or variance, `x`, without an epsilon."""
    call = made(x, "mean", "var")
    if call is None:
        return None
    if call.name == "var":
        own, dims = through(call[0]), _dims(call, call[0])
        unbiased = call.argument(2, "unbiased", call.kw.get("correction", 1))
        return None if dims is None else Norm(own, dims, 0.0, True, unbiased=bool(unbiased))
    square = _squared(call[0])
    dims = None if square is None else _dims(call, square)
    if square is None or dims is None:
        return None
    own = _centred(square, dims)
    return Norm(square, dims, 0.0, False) if own is None else Norm(own, dims, 0.0, True)


def with_epsilon(x: Any) -> Norm | None:
    """The norm with the mean square plus epsilon `x`."""
    call = made(x, "add")
    if call is None:
        return spread(x)
    for part, other in orders(call):
        eps = number(other)
        if eps is not None and 0 <= eps < 0.5 and (norm := spread(part)) is not None:
            return replace(norm, eps=eps)
    return None


def _root(x: Any) -> tuple[Norm, bool] | None:
    """The norm with the root `x`, and whether `x` is the inverse of the root."""
    call = made(x, "sqrt", "rsqrt", "pow", "reciprocal", "rdiv", "div", "add", "std")
    if call is None:
        return None
    if call.name in ("reciprocal", "rdiv", "div"):
        above, below = (call[0], call.argument(1, "other")) if call.name == "div" else (1.0, call[0])
        over = call.argument(1, "other") if call.name == "rdiv" else above
        inner = _root(below) if number(over) == 1 else None
        return None if inner is None or inner[1] else (inner[0], True)
    if call.name == "std":
        dims, unbiased = _dims(call, call[0]), call.argument(2, "unbiased", call.kw.get("correction", 1))
        return None if dims is None else (Norm(through(call[0]), dims, 0.0, True, False, bool(unbiased)), False)
    if call.name == "add":
        for part, other in orders(call):
            eps, root = number(other), _root(part)
            if eps is not None and root is not None and not root[1] and not root[0].eps:
                return replace(root[0], eps=eps, inside=False), False
        return None
    power = {"sqrt": 0.5, "rsqrt": -0.5}.get(call.name) or number(call.argument(1, "exponent"))
    norm = with_epsilon(call[0]) if power in (0.5, -0.5) else None
    return None if norm is None else (norm, power == -0.5)


def _plain(call: Call) -> Norm | None:
    """A norm that ends with its root: `x`, or `x` times a factor, divided by the root."""
    pairs = orders(call) if call.name == "mul" else [(call[0], call.argument(1, "other"))]
    for numerator, divisor in pairs:
        root = _root(divisor)
        if root is None or root[1] is not (call.name == "mul"):
            continue
        norm = root[0]
        for given, scale, plus in _scaled(numerator):
            if not norm.centred:
                found = given is norm.x
            else:
                own = _centred(given, norm.dim)
                found = given is not norm.x and (own is norm.x or same(own, norm.x))
            if found:
                return replace(norm, scale=scale, plus=plus)
    return None


def _scaled(x: Any) -> Iterator[tuple[Any, Any, float]]:
    """The numbers that are divided by a root: as they are, and without a factor for each feature, with this factor."""
    yield through(x), None, 0.0
    call = made(x, "mul")
    for part, other in orders(call) if call else ():
        factor, plus = _plus_one(other)
        if is_vector(factor):
            yield through(part), factor, plus


def _plus_one(x: Any) -> tuple[Any, float]:
    """The factor of a norm without an added number, and that number."""
    call = made(x, "add")
    for part, other in orders(call) if call else ():
        if (plus := number(other)) is not None:
            return part, plus
    return x, 0.0


@read_once
def norm_of(function: Any, args: Values, kw: dict[str, Any]) -> Norm | None:
    """Return the norm that ends at this call; None if there is none."""
    call = Call(name_of(function), function, args, kw)
    if call.name in ("layer_norm", "rms_norm"):
        x, shape = call.argument(0, "input"), call.argument(1, "normalized_shape", ())
        centred = call.name == "layer_norm"
        eps = call.argument(4 if centred else 3, "eps", 1e-5 if centred else None)
        dims = tuple(range(x.ndim - len(shape), x.ndim))
        bias = call.argument(3, "bias") if centred else None
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return Norm(x, dims, eps, centred, scale=call.argument(2, "weight"), bias=bias)
    if call.name in ("mul", "div") and (norm := _plain(call)) is not None:
        return norm
    if call.name == "mul":
        for part, other in orders(call):
            factor, plus = _plus_one(other)
            if is_vector(factor) and (norm := _ended(part)) is not None and norm.scale is None:
                return replace(norm, scale=factor, plus=plus)
    if call.name == "add":
        for part, other in orders(call):
            if is_vector(other) and (norm := _ended(part)) is not None and norm.scale is not None and norm.bias is None:
                return replace(norm, bias=other)
    return None


def _ended(x: Any) -> Norm | None:
    call = made(x, "mul", "div", "add")
    return None if call is None else norm_of(call.function, call.args, call.kw)


def _norm(change: Callable[[Norm], Tensor | None]) -> Callable[..., Any]:
    """Another value of a norm."""

    def plant(function: Any, args: Values, kw: dict[str, Any]) -> Tensor | None:
        norm = norm_of(function, args, kw)
        return None if norm is None else change(norm)

    return plant


def _epsilon(eps: float) -> Callable[[Norm], Tensor | None]:
    return lambda norm: replace(norm, eps=eps).value() if norm.eps != eps else None


def _where(condition: Callable[[Norm], bool], **changes: Any) -> Callable[[Norm], Tensor | None]:
    """The norm with other attributes, if it meets a condition."""
    return lambda norm: replace(norm, **changes).value() if condition(norm) else None


def _other_axis(norm: Norm) -> Tensor | None:
    last = norm.x.ndim - 1
    fits = norm.x.ndim > 2 and norm.dim == (last,)
    return replace(norm, dim=(1,)).value() if fits else None


def _all_heads(norm: Norm) -> Tensor | None:
    last = norm.x.ndim - 1
    return replace(norm, dim=(last - 1, last)).value() if norm.x.ndim == 4 and norm.dim == (last,) else None


def _all_heads_in_front(norm: Norm) -> Tensor | None:
    """The norm also over the heads, of numbers (batch, heads, length, depth)."""
    last = norm.x.ndim - 1
    return replace(norm, dim=(last - 2, last)).value() if norm.x.ndim == 4 and norm.dim == (last,) else None


def _divided(power: float) -> Callable[[Norm], Tensor | None]:
    """The numbers divided by another power of the root."""

    def change(norm: Norm) -> Tensor | None:
        if not norm.inside:
            return None
        mean = norm.x.mean(norm.dim, keepdim=True) if norm.centred else 0.0
        root = (norm.x - mean) / norm.without_scale()
        centred = replace(norm, scale=None, bias=None)
        y = centred.without_scale() * root / root**power
        y = y if norm.scale is None else y * (norm.scale + norm.plus)
        return y if norm.bias is None else y + norm.bias

    return change


def _root_of_deviation(norm: Norm) -> Tensor | None:
    """Divide by the root of the deviation plus epsilon."""
    if not norm.centred or not norm.inside:
        return None
    centred = norm.x - norm.x.mean(norm.dim, keepdim=True)
    y = centred / (centred.square().mean(norm.dim, keepdim=True).sqrt() + norm.eps).sqrt()
    y = y if norm.scale is None else y * (norm.scale + norm.plus)
    return y if norm.bias is None else y + norm.bias


def _of_variance(norm: Norm) -> Tensor | None:
    """Divide by the deviation, without centring."""
    if norm.centred:
        return None
    y = norm.x / (norm.x.var(norm.dim, correction=0, keepdim=True) + norm.eps).sqrt()
    return y if norm.scale is None else y * (norm.scale + norm.plus)


FUNCTIONAL = ("mul", "div", "add", "layer_norm", "rms_norm")
OWN = ("mul", "div", "add", "rms_norm")

OWN_NORMS = (
    Trap(
        "norm-epsilon-is-1e-6",
        "between",
        OWN,
        _norm(_epsilon(1e-6)),
        "the norm's epsilon is 1e-6, Flax's default; PyTorch's model has another",
        "pass epsilon=, as PyTorch's model has it",
        "keras-team/keras-hub@81de50adc",
        arguments=(Argument("epsilon", LAYER),),
    ),
    Trap(
        "norm-epsilon-is-1e-5",
        "between",
        FUNCTIONAL,
        _norm(_epsilon(1e-5)),
        "the norm's epsilon is 1e-5; PyTorch's model has another",
        "pass epsilon=, as PyTorch's model has it",
        "keras-team/keras-hub@99edccfe6",
        arguments=(Argument("epsilon", LAYER),),
    ),
    Trap(
        "norm-epsilon-missing",
        "between",
        FUNCTIONAL,
        _norm(_epsilon(0.0)),
        "the norm has no epsilon, or one that is lost in rounding",
        "add epsilon to the mean square or to its root, as PyTorch's model does",
        "Zhang and Sennrich 2019",
    ),
    Trap(
        "norm-epsilon-outside",
        "between",
        FUNCTIONAL,
        _norm(_where(lambda norm: norm.inside and norm.eps > 0, inside=False)),
        "epsilon is added to the root; PyTorch's model adds it to the mean square",
        "add epsilon inside the root: x / jnp.sqrt(mean square + epsilon)",
        "tile-ai/tilelang#1243",
    ),
    Trap(
        "norm-epsilon-inside",
        "between",
        OWN,
        _norm(_where(lambda norm: not norm.inside and norm.eps > 0, inside=True)),
        "epsilon is added to the mean square; PyTorch's model adds it to the root",
        "add epsilon to the root: x / (root + epsilon)",
        "fla-org/flash-linear-attention#508",
    ),
    Trap(
        "rms-norm-subtracts-mean",
        "between",
        OWN,
        _norm(_where(lambda norm: not norm.centred, centred=True)),
        "the mean is subtracted, as in a LayerNorm; PyTorch's model has an RMSNorm",
        "use nn.RMSNorm, which does not subtract the mean",
        "ggml-org/llama.cpp#173",
    ),
    Trap(
        "layer-norm-keeps-mean",
        "between",
        FUNCTIONAL,
        _norm(_where(lambda norm: norm.centred, centred=False)),
        "the mean is not subtracted, as in an RMSNorm; PyTorch's model has a LayerNorm",
        "use nn.LayerNorm, which subtracts the mean",
        "Ba et al. 2016",
    ),
    Trap(
        "norm-variance-unbiased",
        "between",
        FUNCTIONAL,
        _norm(_where(lambda norm: norm.centred and not norm.unbiased, unbiased=True)),
        "the variance is divided by n − 1; PyTorch's model divides by n",
        "divide the variance by n: pass ddof=0",
        "LBANN/lbann#2024",
        arguments=(Argument("ddof", "var", 0),),
    ),
    Trap(
        "norm-scale-plus-one",
        "between",
        (*OWN, "layer_norm"),
        _norm(_where(lambda norm: norm.scale is not None and not norm.plus, plus=1.0)),
        "the factor is 1 + scale, as in Gemma; PyTorch's model multiplies by scale",
        "multiply by scale, without adding 1",
        "utensils/mold#1078",
    ),
    Trap(
        "norm-scale-one-lost",
        "between",
        ("mul", "add"),
        _norm(_where(lambda norm: norm.scale is not None and norm.plus == 1, plus=0.0)),
        "the factor is scale; PyTorch's model multiplies by 1 + scale",
        "multiply by 1 + scale, or add 1 to the weights when you move them",
        "utensils/mold#1078",
    ),
    Trap(
        "norm-scale-missing",
        "between",
        ("mul", "add", "layer_norm", "rms_norm"),
        _norm(_where(lambda norm: norm.scale is not None, scale=None)),
        "the normalised numbers are not scaled",
        "multiply by the norm's scale",
        "Ba et al. 2016",
    ),
    Trap(
        "norm-bias-missing",
        "between",
        ("add", "layer_norm"),
        _norm(_where(lambda norm: norm.bias is not None, bias=None)),
        "the norm has no bias",
        "add the norm's bias",
        "Ba et al. 2016",
    ),
    Trap(
        "norm-missing",
        "between",
        FUNCTIONAL,
        _norm(lambda norm: norm.x),
        "there is no norm; PyTorch's model has one",
        "add the norm that PyTorch's model has, such as nn.LayerNorm or nn.RMSNorm",
        "Cerebras/modelzoo#85",
    ),
    Trap(
        "norm-twice",
        "between",
        FUNCTIONAL,
        _norm(lambda norm: norm.value(norm.value())),
        "the norm is taken twice",
        "apply the norm once",
        "ggml-org/llama.cpp#1925",
    ),
    Trap(
        "norm-axis",
        "between",
        FUNCTIONAL,
        _norm(_other_axis),
        "the norm goes over axis 1; PyTorch's over the features",
        "normalise over the last axis",
        "kyegomez/zeta#180",
    ),
    Trap(
        "norm-over-all-heads",
        "between",
        FUNCTIONAL,
        _norm(_all_heads),
        "queries and keys are normalised over all heads at once; PyTorch's model normalises each head",
        "normalise after the split into heads, over the last axis",
        "EleutherAI/gpt-neox#1367",
    ),
    Trap(
        "norm-over-all-heads-in-front",
        "between",
        FUNCTIONAL,
        _norm(_all_heads_in_front),
        "queries and keys are normalised over all heads at once; PyTorch's model, whose heads come before the "
        "length, normalises each head",
        "normalise after the split into heads, over the last axis",
        "EleutherAI/gpt-neox#1367",
    ),
    Trap(
        "norm-times-root",
        "between",
        FUNCTIONAL,
        _norm(_divided(-1.0)),
        "the numbers are multiplied by the root; PyTorch's model divides by it",
        "multiply by jax.lax.rsqrt(mean square + epsilon), or divide by its jnp.sqrt",
        "mosaicml/llm-foundry#371",
    ),
    Trap(
        "norm-by-variance",
        "between",
        FUNCTIONAL,
        _norm(_divided(2.0)),
        "the numbers are divided by the variance or the mean square; PyTorch's model takes its root",
        "divide by the root: jnp.sqrt(mean square + epsilon)",
        "ppwwyyxx/GroupNorm-reproduce#3",
    ),
    Trap(
        "rms-norm-of-variance",
        "between",
        OWN,
        _norm(_of_variance),
        "the RMSNorm divides by the deviation from the mean; PyTorch's by the root of the mean square",
        "take the mean square without the mean: jnp.mean(jnp.square(x), -1, keepdims=True)",
        "huggingface/pytorch-image-models#2380",
    ),
    Trap(
        "norm-by-squared-variance",
        "between",
        FUNCTIONAL,
        _norm(_divided(4.0)),
        "the numbers are divided by the square of the variance; PyTorch's model takes its root",
        "divide by (variance + epsilon) ** 0.5",
        "131250208/TPlinker-joint-extraction#37",
    ),
    Trap(
        "norm-by-root-of-deviation",
        "between",
        FUNCTIONAL,
        _norm(_root_of_deviation),
        "the numbers are divided by the root of the deviation; PyTorch's model takes the root of the variance",
        "take the root of jnp.var, not of jnp.std",
        "fastai/course-v3#363",
    ),
)

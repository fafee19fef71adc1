"""PyTorch's fused functions written out, each operation rounded by itself.

PyTorch computes `linear`, `silu` or attention in float32 inside and rounds once. A faithful port may call the parts one
after the other, each of which rounds: `jax.nn.silu` is a product with a sigmoid, and Flax adds a bias after a product.
Both are right. So the reference runs in both forms, and a port may be as far off as the worse of the two.

A softmax is not a row of this table: running its parts in bfloat16 is exactly the mistake that float32 avoids. Nor is a
sum.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

F: Any = torch.nn.functional

# The original functions; `written_out` replaces them.
MATMUL, BATCH_NORM, CONVOLUTIONS = F.linear, F.batch_norm, {n: getattr(F, f"conv{n}d") for n in (1, 2, 3)}


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product, then a sum."""
    product = MATMUL(x, weight)
    return product if bias is None else product + bias


def addmm(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A product of matrices, or of a batch of them, then a sum."""
    product = x @ weight
    product = product if alpha == 1 else product * alpha
    return product + (bias if beta == 1 else bias * beta)


def convolution(
    dimensions: int, x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kw: Any
) -> Tensor:
    """A convolution, then a sum."""
    product = CONVOLUTIONS[dimensions](x, weight, None, *args, **kw)
    return product if bias is None else product + bias.reshape(-1, *[1] * dimensions)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + torch.exp(-x))


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    """X * sigmoid(x)."""
    return x * sigmoid(x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Either form of GELU, as its paper has it."""
    if approximate == "tanh":
        return x * (0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return 0.5 * x * torch.erfc(-x * math.sqrt(0.5))


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """max(x, 0) + log(1 + exp(-|x|))."""
    scaled = x * beta if beta != 1 else x
    result = scaled.clamp(min=0) + torch.log1p(torch.exp(-scaled.abs()))
    return result / beta if beta != 1 else result


def logsigmoid(x: Tensor) -> Tensor:
    """-softplus(-x)."""
    return -softplus(-x)


def mish(x: Tensor, inplace: bool = False) -> Tensor:
    """X * tanh(softplus(x))."""
    return x * torch.tanh(softplus(x))


def elu(x: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x, or alpha * (exp(x) - 1) where x is negative."""
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def hardswish(x: Tensor, inplace: bool = False) -> Tensor:
    """X * relu6(x + 3) / 6."""
    return x * ((x + 3).clamp(0, 6) / 6)


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """relu6(x + 3) / 6."""
    return (x + 3).clamp(0, 6) / 6


def softsign(x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return x / (1 + x.abs())


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as in papers: scores in the type of the inputs, their softmax in float32."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, -1, dtype=wide).to(value.dtype) @ value


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """BatchNorm as in Flax: parameters are rounded to the type of the input, and eval mode computes in that type."""
    scale, shift = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    if training or running_mean is None or running_var is None:
        scale, shift = (
            t if t is None or old is None else t.to(old.dtype) for t, old in ((scale, weight), (shift, bias))
        )
        return BATCH_NORM(x, running_mean, running_var, scale, shift, training, momentum, eps)
    shape = (-1, *[1] * (x.ndim - 2))
    factor = torch.rsqrt(running_var.to(x.dtype) + eps)
    factor = factor if scale is None else factor * scale
    y = (x - running_mean.to(x.dtype).reshape(shape)) * factor.reshape(shape)
    return y if shift is None else y + shift.reshape(shape)


# (where a function is, its name, what it is made of).
FUSED: tuple[tuple[Any, str, Callable[..., Tensor]], ...] = (
    (F, "linear", linear),
    *((F, f"conv{n}d", partial(convolution, n)) for n in CONVOLUTIONS),
    *((owner, name, addmm) for owner in (torch, Tensor) for name in ("addmm", "baddbmm")),
    (F, "batch_norm", batch_norm),
    (F, "silu", silu),
    (F, "gelu", gelu),
    (F, "sigmoid", sigmoid),
    (torch, "sigmoid", sigmoid),
    (Tensor, "sigmoid", sigmoid),
    (F, "softplus", softplus),
    (F, "logsigmoid", logsigmoid),
    (F, "mish", mish),
    (F, "elu", elu),
    (F, "hardswish", hardswish),
    (F, "hardsigmoid", hardsigmoid),
    (F, "softsign", softsign),
    (F, "scaled_dot_product_attention", attention),
)
# Keys are the functions themselves, because a model may hold them under other names.
PARTS: dict[Any, Any] = {getattr(owner, name): parts for owner, name, parts in FUSED}


class _Parts(TorchFunctionMode):
    """Computes a fused function's parts, wherever the code took the function from."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return PARTS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def written_out() -> Iterator[None]:
    """Make this thread's calls of PyTorch's fused functions compute their parts one after the other.

    A mode sees every call except those inside PyTorch's own Python functions, such as `multi_head_attention_forward`.
    These take the functions from their module, so the functions in the module are replaced by their parts.
    """
    thread = threading.get_ident()

    def chosen(original: Callable[..., Any], parts: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            return (parts if threading.get_ident() == thread else original)(*args, **kw)

        return call

    with ExitStack() as stack:
        for owner, name, parts in FUSED:
            if owner is F:
                stack.enter_context(_attribute(owner, name, chosen(getattr(owner, name), parts)))
        stack.enter_context(_Parts())
        yield


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a module, and restore it afterwards."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)

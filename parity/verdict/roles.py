"""Which tensors each side trains, and what the check compares for those that only one side trains.

A gradient is compared if both sides have one. PyTorch has none for a buffer and a frozen parameter; Flax has none
for what is not a parameter (an `nnx.Variable` of another type, a collection other than `params`). Their values are
still compared, and training must not change what PyTorch does not change.

A parameter that PyTorch does not freeze and that gets no gradient (`detach`, a layer that is never called) has a
gradient of zeros: the port's must be zeros too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from parity.numerics.quantities import Probe, parameter_of
from parity.reports.report import Finding
from parity.running import pytorch as run_pytorch
from parity.running.taps import Tap
from ports.errors import UserError

LEAVE = (
    "stop its gradient as detach does (jax.lax.stop_gradient), keep it in a variable that is not a parameter, or "
    "pass tx= with an optimizer that leaves it"
)
TRAIN = "make it a parameter (nnx.Param, Linen's collection params), or freeze PyTorch's with requires_grad_(False)"
PASS = "let its gradient pass: no jax.lax.stop_gradient, and no copy of it that is a constant"
GRADIENT = "gradient.parameter"
NAMED = 3  # the largest number of names in a note


def _gradients(net: torch.nn.Module, fed: Probe, tensors: Collection[str]) -> dict[str, bool]:
    """Return which parameters get a gradient from a backward pass, of those that PyTorch does not freeze.

    Raises:
        UserError: the loss is not one number.
    """
    copy = run_pytorch.promote(net).train()
    with run_pytorch.tapped(copy, Tap(), ()):
        values = run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))
    loss = run_pytorch.loss_of(fed, values)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise UserError(f"loss: got {type(loss).__name__} {tuple(getattr(loss, 'shape', ()))}, expected one number")
    run_pytorch.backward(loss, fed)
    named = run_pytorch.named_parameters(copy, tensors)
    return {n: p.grad is not None for n, p in named.items() if n in tensors and p.requires_grad}


def assigned(net: torch.nn.Module, fed: Probe, tensors: Collection[str], in_port: Collection[str]) -> Probe:
    """Return the probe, with what is compared for every tensor. Freeze the parameters of `net` that have no gradient.

    Args:
        tensors: that both models have.
        in_port: those of them that are parameters of the port.
    """
    got = _gradients(net, fed, tensors)
    trained, without = ({name for name, on in got.items() if on is wanted} for wanted in (True, False))
    named = run_pytorch.named_parameters(net, tensors)
    for name, parameter in named.items():
        parameter.requires_grad_(name in trained)
    buffers = {n for n, _ in net.named_buffers()} & {*tensors}
    parameters = {*named} & {*tensors}
    return replace(
        fed,
        tensors=frozenset(trained | (without & {*in_port}) | buffers),
        idle=frozenset((parameters | buffers) - trained) & {*in_port},
        frozen=frozenset((parameters | buffers) - trained - without) & {*in_port},
        folded=frozenset({*in_port} - {*tensors}),
        fixed=frozenset(trained - {*in_port}),
    )


def note(net: torch.nn.Module, fed: Probe) -> str:
    """Return the report's text about gradients that only one side may have; empty if there are no such tensors."""
    buffers = {n for n, _ in net.named_buffers()}
    names = sorted({*fed.fixed} | {n for n in fed.idle if n in buffers or n not in (fed.tensors or ())})
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f", gradients not compared: {', '.join(names[:NAMED])}{more} (not trained on both sides)" if names else ""


def findings(
    port: str, fed: Probe, outside: Mapping[str, Sequence[str]], own: bool, wrong: Collection[str] = ()
) -> list[Finding]:
    """Return a finding for every tensor that one side trains and the other does not.

    Args:
        outside: by quantity, the tensors of gradients and training that are beyond their bounds.
        own: whether the transform is the caller's. Then its effect on a parameter without a gradient is a mistake of
            its own.
        wrong: the modules whose values are wrong. A gradient of a tensor in such a module follows from that.
    """
    moved = dict.fromkeys(parameter_of(q, name) for q, names in outside.items() if q != GRADIENT for name in names)
    found = []
    for name in dict.fromkeys((*outside.get(GRADIENT, ()), *moved)):
        if name in fed.fixed:
            text = f"{name}: PyTorch trains it; in the port it is not a parameter and stays what it is; {TRAIN}"
        elif name in fed.idle and name.rpartition(".")[0] not in wrong and (not own or name not in moved):
            text = f"{name}: PyTorch's gets no gradient and training leaves it; the port's gets a gradient; {LEAVE}"
        else:
            continue
        found.append(Finding(port, name.rpartition(".")[0] or name, None, text))
    return found


def stopped(port: str, outside: Collection[str], got: Mapping[str, np.ndarray]) -> list[Finding]:
    """Return a finding for every parameter whose gradient is zero in the port alone.

    Args:
        outside: the parameters whose gradients are beyond their bounds.
        got: their gradients in the port.
    """
    text = "{}: PyTorch trains it; the port's gradient is zero, so it stays what it is; {}"
    return [
        Finding(port, name.rpartition(".")[0] or name, None, text.format(name, PASS))
        for name in outside
        if name in got and not got[name].any()
    ]


def advice(port: str, net: torch.nn.Module, trained: Collection[str]) -> list[str]:
    """Return the text about tensors that PyTorch's training does not change and that get a gradient in the port.

    This is not a mistake: in JAX the optimizer decides which parameters stay.

    Args:
        trained: the names of these tensors.
    """
    if not trained:
        return []
    buffers = {n for n, _ in net.named_buffers()}
    names = sorted(trained)
    what = "a buffer" if names[0] in buffers else "frozen"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{port}: {names[0]}{more}: PyTorch's is {what}, the port's gets a gradient; in training, {LEAVE}"]

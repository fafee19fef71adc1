"""Runs a PyTorch network and records every quantity."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity.quantities import SGD, Probe, Tensors, outputs
from ports.errors import UserError

Record = dict[str, tuple[Tensor, Tensor]]


def promote(net: nn.Module) -> nn.Module:
    """A copy in float64, running statistics too."""
    return copy.deepcopy(net).double()


def parameter_names(net: nn.Module) -> list[str]:
    return [name for name, _ in net.named_parameters()]


def loss_of(values: Any, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits; for feature maps the sum of their mean squares."""
    if isinstance(values, Tensor):
        return F.cross_entropy(values, labels)
    return torch.stack([value.square().mean() for value in values]).sum()


@contextmanager
def recorded(net: nn.Module) -> Iterator[Record]:
    """Input and output of every layer that has parameters, under its name, in the order of completion."""
    record: Record = {}
    hooks = []

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            record[name] = (args[0].detach(), output.detach())

        return hook

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if module.training and args[0].numel() == args[0].shape[1]:
                raise UserError(
                    f"{name}: BatchNorm in train mode would see one value a channel (input {tuple(args[0].shape)}); "
                    "expected two or more: give a larger batch or larger images"
                )

        return hook

    for name, module in net.named_modules():
        if name and not isinstance(module, nn.Sequential) and any(True for _ in module.parameters()):
            hooks.append(module.register_forward_hook(keep(name)))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(count(name)))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def layers(net: nn.Module, probe: Probe, *, train: bool, in_place: bool = False) -> tuple[Tensors, Tensors]:
    """Every layer's input and output. The network's statistics change only with `in_place`."""
    net = (net if in_place else copy.deepcopy(net)).train(train)
    with torch.no_grad(), recorded(net) as record:
        net(torch.from_numpy(probe.images))
    return ({n: i.numpy() for n, (i, _) in record.items()}, {n: o.numpy() for n, (_, o) in record.items()})


def learning_rate(net: nn.Module, probe: Probe, moves: float = 1e-3) -> float:
    """The rate at which one step of gradient descent moves no parameter tensor by more than this part of its norm.

    Larger steps let rounding grow from step to step; of much smaller ones the rounding of the weights is seen alone.
    """
    net = copy.deepcopy(net).train()
    with recorded(net):
        values = net(torch.from_numpy(probe.images))
    loss_of(values, torch.from_numpy(probe.labels)).backward()
    pairs = [(float(p.detach().norm()), float(p.grad.norm())) for p in net.parameters() if p.grad is not None]
    return moves * min((size / slope for size, slope in pairs if size > 0 and slope > 0), default=1.0)


def observe(net: nn.Module, probe: Probe, sgd: SGD) -> Iterator[tuple[str, Tensors]]:
    """All quantities of `parity.quantities.QUANTITIES`, one after the other; `net` is left as it was."""
    net = copy.deepcopy(net)
    labels = torch.from_numpy(probe.labels)

    with torch.no_grad(), recorded(net.eval()) as record:
        values = net(torch.from_numpy(probe.images))
    yield "output.eval", outputs(values)
    yield "layer.eval", {name: output.numpy() for name, (_, output) in record.items()}
    del values, record

    net.train()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    for step, learning_rate in enumerate(sgd.learning_rates or (0.0,)):
        images = torch.from_numpy(probe.images).requires_grad_()
        with recorded(net) if step == 0 else nullcontext({}) as record:
            values = net(images)
        loss = loss_of(values, labels)
        if step == 0:
            yield (
                "output.train",
                outputs(values.detach() if isinstance(values, Tensor) else [v.detach() for v in values]),
            )
            yield "layer.train", {name: output.numpy() for name, (_, output) in record.items()}
            yield "loss", {"loss": loss.detach().numpy()}
        del values, record
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert images.grad is not None
            grads = ((name, torch.zeros_like(p) if p.grad is None else p.grad) for name, p in net.named_parameters())
            yield "gradient.parameter", {name: grad.numpy().copy() for name, grad in grads}
            yield "gradient.input", {"input": images.grad.numpy()}
            yield "statistics", {name: b.numpy().copy() for name, b in net.named_buffers()}
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
    if sgd.steps:
        yield "training.parameter", {n: (p.detach() - start[n]).numpy() for n, p in net.named_parameters()}

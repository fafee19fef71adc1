"""Runs a PyTorch network and records every quantity."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parity.numerics import bounds, masking
from parity.numerics.layouts import Tensors, leaves, mapped, rebuilt
from parity.numerics.quantities import Probe, Training, after
from parity.numerics.tables import recomputed, rounded
from parity.running import lifted_pytorch
from parity.running.draws_pytorch import FixedDraws
from parity.running.lifted_pytorch import lifted
from parity.running.packed import first_padded, packed_in, with_first_padded
from parity.running.raised import OF_GRADIENTS, OF_OUTPUTS, raising
from parity.running.taps import Calls, Recorder, Tap
from ports.errors import UserError

MODEL, OPTIMIZER = "the PyTorch model", "the PyTorch optimizer"


def promote(net: nn.Module) -> nn.Module:
    """A copy in float64 on the device of the check, with running statistics.

    It has no dropout between recurrent layers, because Flax has no such dropout.

    An RMSNorm without an epsilon of its own keeps the one that it has in the type of its weights.
    """
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.RMSNorm) and module.eps is None:
            module.eps = torch.finfo(torch.float32 if module.weight is None else module.weight.dtype).eps
    tables = {name: found for name, b in net.named_buffers() if (found := _table(b)) is not None}
    net = _in_float64(net)
    for name, buffer in net.named_buffers():
        if name in tables:
            buffer.copy_(torch.as_tensor(tables[name]))
    for module in net.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    return net


def _in_float64(net: nn.Module) -> nn.Module:
    """Return the network in float64; `nn.Module.to` would take the imaginary parts away."""
    device = torch.get_default_device()

    def widened(tensor: Tensor) -> Tensor:
        dtype = torch.complex128 if tensor.is_complex() else torch.float64 if tensor.is_floating_point() else None
        return tensor.to(device, dtype)

    return net._apply(widened)


def _table(buffer: Tensor) -> np.ndarray | None:
    """Return a buffer of float32 in float64, where its formula is known."""
    return recomputed(buffer.numpy(force=True)) if buffer.dtype == torch.float32 else None


def rounded_tables(net: nn.Module, known: Collection[str]) -> tuple[str, ...]:
    """Return the buffers of a model in float32 that hold rounded numbers of an unknown formula, or one rounded number.

    The port may hold such a number as PyTorch does, or compute it exactly.

    Args:
        known: the tensors that the port has, too.
    """
    narrow = ((name, b) for name, b in net.named_buffers() if b.dtype == torch.float32 and name not in known)
    return tuple(name for name, b in narrow if (_table(b) is None or not b.ndim) and rounded(b.numpy(force=True)))


def named_parameters(net: nn.Module, compared: Collection[str] | None) -> dict[str, nn.Parameter]:
    """Return each parameter once, under the first of its names that is compared, or else under its first name.

    Args:
        compared: the names of tensors that both models have; None for all.
    """
    names: dict[int, str] = {}
    found = dict(net.named_parameters(remove_duplicate=False))
    for name, parameter in found.items():
        first = names.setdefault(id(parameter), name)
        if compared is not None and first not in compared and name in compared:
            names[id(parameter)] = name
    return {name: found[name] for name in names.values()}


def parameters(net: nn.Module, probe: Probe) -> dict[str, nn.Parameter]:
    """The parameters that are trained and compared."""
    named = named_parameters(net, probe.tensors)
    return {n: p for n, p in named.items() if probe.tensors is None or n in probe.tensors}


def updated(net: nn.Module, probe: Probe) -> dict[str, Tensor]:
    """Return the tensors whose training is compared: those that are trained, and those that must stay."""
    tensors = {**dict(net.named_parameters(remove_duplicate=False)), **dict(net.named_buffers())}
    return {**parameters(net, probe), **{n: t for n, t in tensors.items() if n in probe.idle}}


def loss_of(probe: Probe, values: Any) -> Any:
    """Return the loss of a network's outputs."""
    with raising("the loss in PyTorch", values, OF_OUTPUTS), lifted(None, probe.pins):
        return probe.loss.torch(values)


def backward(loss: Tensor, probe: Probe) -> None:
    """Run the backward pass if there is one: a network whose inputs and parameters need no gradient has none."""
    if loss.requires_grad:
        with raising("the backward pass of the PyTorch model", expected="expected gradients"):
            lifted_pytorch.backward(loss, probe.pins)


def tied(net: nn.Module) -> dict[str, str]:
    """The additional names of tensors, each with the tensor's first name."""
    found: dict[str, str] = {}
    seen: dict[object, str] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        first = seen.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else name, name)
        if first != name:
            found[name] = first
    return found


class Users(TorchFunctionMode):
    """The modules that use each parameter: those that run while a function gets it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in net.named_parameters()}
        self.running: list[str] = []
        self.found: dict[str, set[str]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if name := self.names.get(id(value)):
                self.found.setdefault(name, set()).add(self.running[-1] if self.running else "")
        return func(*args, **(kwargs or {}))


class Used(TorchDispatchMode):
    """The tensors that operations read, also in code that no function mode sees."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports `torch.compile` here (1.5 s)

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self.read |= {value.untyped_storage().data_ptr() for value in tensors if value.numel()}
        return func(*args, **(kwargs or {}))

    def __contains__(self, tensor: Tensor) -> bool:
        return not tensor.numel() or tensor.untyped_storage().data_ptr() in self.read


def shared(net: nn.Module, probe: Probe) -> set[str]:
    """Return the modules whose parameters are also used elsewhere, such as an embedding's by an output layer."""
    net = promote(net).eval()
    users = Users(net)

    def leave(*_: object) -> None:
        users.running.pop()

    for name, module in net.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: users.running.append(name))
        module.register_forward_hook(leave)
    with torch.no_grad(), users:
        run(net, probe, inputs_of(probe))
    owners = {name: name.rpartition(".")[0] for name in users.found}
    return {owners[name] for name, modules in users.found.items() if len(modules | {owners[name]}) > 1}


def with_parameters(net: nn.Module) -> list[str]:
    """The modules that are recorded by default: all except Sequentials with parameters."""
    return [
        n
        for n, m in net.named_modules()
        if n and not isinstance(m, nn.Sequential) and any(True for _ in m.parameters())
    ]


@contextmanager
def tapped(net: nn.Module, tap: Tap, names: Collection[str] | None = None) -> Iterator[None]:
    """`tap` listens at the modules of these names."""
    names = set(with_parameters(net) if names is None else names)
    calls, running, hooks = Calls(), [], []

    def enter(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            running.append(calls.next(name))
            if (x := first_padded(args)) is None:
                return None
            new = tap.enter(running[-1], x)
            if new is x:
                return None
            if packed_in(args) is not None:
                return with_first_padded(args, new), kwargs
            return tuple(new if arg is x else arg for arg in args), kwargs

        return hook

    def leave(_: nn.Module, args: Any, output: Any) -> Any:
        name = running.pop()
        if (y := first_padded(output)) is None:
            return None
        new = tap.leave(name, y)
        return None if new is y else with_first_padded(output, new)

    def count(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if module.training and args[0].numel() == args[0].shape[1]:
                raise UserError(
                    f"{name}: BatchNorm in train mode would see one value a channel (input {tuple(args[0].shape)}); "
                    "expected two or more: give a larger batch or larger images"
                )

        return hook

    for name, module in net.named_modules():
        if name in names:
            hooks.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(leave))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(count(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Outputs(Recorder):
    """Keeps detached outputs, or copies if later code may change them in place."""

    def __init__(self, copies: bool, inputs: bool = False) -> None:
        super().__init__(inputs)
        self.copies = copies

    def _kept(self, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self.copies else tensor.detach()

    def enter(self, name: str, x: Tensor) -> Tensor:
        super().enter(name, self._kept(x) if self.wants_inputs else x)
        return x

    def leave(self, name: str, y: Tensor) -> Tensor:
        super().leave(name, self._kept(y))
        return y


def inputs_of(probe: Probe, grad: bool = False) -> tuple[Any, ...]:
    """The probe's inputs as new tensors."""

    def tensor(_: str, array: np.ndarray) -> Tensor:
        new = torch.tensor(array)
        new = as_images(new) if probe.channels_last else new
        return new.requires_grad_(grad and new.is_floating_point())

    return mapped(probe.inputs, tensor)


def run(net: nn.Module, probe: Probe, inputs: tuple[Any, ...]) -> Any:
    strides = OneOrder() if probe.channels_last else nullcontext()
    with raising(MODEL), strides, FixedDraws(probe.drops), lifted(net, probe.pins):
        values = called(net, probe, inputs)
    if probe.mask is not None:
        mask = probe.mask
        values = rebuilt(values, lambda _, value: _counted(value, mask))
    if not probe.alone:
        return values
    return mapped(values, lambda name, value: None if name in probe.alone else value, "output")


def called(net: nn.Module, probe: Probe, inputs: tuple[Any, ...]) -> Any:
    """Return the network's output, called as the probe says in its current mode."""
    both = mapped(dict(probe.keywords), lambda _, a: torch.tensor(a))
    alone = rebuilt(dict(probe.torch_call.keywords), lambda _, a: torch.tensor(a))
    call = replace(probe.torch_call, keywords={**both, **alone})
    return call(net, inputs, call.arguments(net, inputs, net.training))


def _counted(value: Tensor, mask: np.ndarray) -> Tensor:
    """Return an output with zeros at the positions that do not count, if it has positions."""
    if not masking.covers(mask, tuple(value.shape)):
        return value
    return torch.where(torch.as_tensor(masking.broadcast(mask, value.ndim)), value, torch.zeros_like(value))


def chances(net: nn.Module, probe: Probe) -> tuple[Counter[float], Counter[float]]:
    """Return how often a network drops values in train mode, by the fraction that it drops.

    The first result counts explicit dropout, the second uniform draws that are rounded down to a mask.
    """
    net = promote(net).train()
    with raising(MODEL), torch.no_grad(), FixedDraws() as drawn, lifted(net, probe.pins):
        called(net, probe, inputs_of(probe))
    return drawn.chances, drawn.floors


def outputs(values: Any) -> Tensors:
    return {name: value.detach().numpy() for name, value in leaves(values, "output") if isinstance(value, Tensor)}


def numpy(tensors: dict[str, Tensor]) -> Tensors:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def records(tensors: dict[str, Tensor], probe: Probe) -> Tensors:
    """Return the outputs of layers, at the positions that count."""
    return {name: probe.counted(array) for name, array in numpy(tensors).items()}


def statistics(net: nn.Module, probe: Probe) -> None:
    """Runs the network once in train mode, for its running statistics."""
    net.train()
    with torch.no_grad(), tapped(net, Tap(), ()):
        run(net, probe, inputs_of(probe))


def sizes(params: Sequence[Tensor], moves: float) -> list[float]:
    """Return the norm of every parameter, as it counts for steps that move it by the fraction `moves`.

    Steps larger than the fraction `moves` would let rounding grow, and steps smaller than `bounds.SEEN` would be hidden
    by rounding. One tiny tensor, such as a bias of 1e-6, would push all others below the second limit. So each tensor
    counts at least as a fraction of the norm expected of its number of elements; this fraction is in the middle between
    the two limits.
    """
    norms = [float(p.detach().norm()) for p in params]
    rms = math.hypot(*norms) / max(1, sum(p.numel() for p in params)) ** 0.5
    least = rms * (bounds.SEEN / moves) ** 0.5
    return [max(norm, least * p.numel() ** 0.5) if norm else 0.0 for norm, p in zip(norms, params, strict=True)]


def learning_rate(net: nn.Module, probe: Probe, moves: float = 1e-3) -> float:
    """Return the rate at which one step of gradient descent moves no parameter by more than this fraction of its size.

    Larger steps let rounding grow from step to step; much smaller ones show only the rounding of the weights.
    """
    net = copy.deepcopy(net).train()
    with tapped(net, Tap(), ()):
        values = run(net, probe, inputs_of(probe))
    backward(loss_of(probe, values), probe)
    params = [p for p in net.parameters() if p.grad is not None]
    slopes = [float(p.grad.norm()) for p in params if p.grad is not None]
    pairs = zip(sizes(params, moves), slopes, strict=True)
    return moves * min((size / slope for size, slope in pairs if size > 0 and slope > 0), default=1.0)


def as_images(tensor: Tensor) -> Tensor:
    """Return an array with its channels last in memory, if it has an image's four axes."""
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


# Functions whose result depends on the order in memory, and those that refuse some orders.
ORDER = {"as_strided", "stride", "is_contiguous"}
VIEWS = {"view", "view_as", "view_as_complex"}


class OneOrder(TorchFunctionMode):
    """Gives code that asks for the order in memory the usual one, while images have their channels last.

    Somebody's `x.view(n, -1)` refuses other orders, and `x.as_strided` would give other numbers.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in ORDER and args[0].ndim == 4 and args[0].is_contiguous(memory_format=torch.channels_last):
            args = (args[0].contiguous(), *args[1:])
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            if name not in VIEWS or args[0].is_contiguous():
                raise
            return func(args[0].contiguous(), *args[1:], **kwargs)


def observe(
    net: nn.Module, probe: Probe, training: Training, names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensors]]:
    """All quantities of `numerics.quantities.QUANTITIES`, one after the other; those of training in several parts.

    `net` is left unchanged.

    Args:
        names: the modules whose outputs are recorded.
    """
    net = copy.deepcopy(net)
    if probe.channels_last:
        net = net._apply(as_images)
    record = Outputs(probe.in_place)
    with torch.no_grad(), tapped(net.eval(), record, names):
        values = run(net, probe, inputs_of(probe))
    yield "output.eval", outputs(values)
    yield "layer.eval", records(record.outputs, probe)
    del values, record

    net.train()
    trained = parameters(net, probe)
    loop = Loop(updated(net, probe), training)
    for number in range(training.passes):
        images, record = inputs_of(probe, grad=True), Outputs(probe.in_place)
        with tapped(net, record, names if number == 0 else ()):
            values = run(net, probe, images)
        loss = loss_of(probe, values)
        if number == 0:
            yield "output.train", {name: array.copy() for name, array in outputs(values).items()}
            yield "layer.train", records(record.outputs, probe)
            yield "loss", {"loss": loss.detach().numpy()}
        del values, record
        backward(loss, probe)
        if number == 0:
            both = {name: p for name, p in trained.items() if name not in probe.fixed}
            grads = ((name, torch.zeros_like(p) if p.grad is None else p.grad) for name, p in both.items())
            yield "gradient.parameter", {name: grad.numpy().copy() for name, grad in grads}
            floating = ((name, x) for name, x in leaves(images, "input") if x.requires_grad)
            yield (
                "gradient.input",
                {n: np.zeros(x.shape) if x.grad is None else x.grad.numpy() for n, x in floating},
            )
            buffers = ((n, b) for n, b in net.named_buffers() if probe.tensors is None or n in probe.tensors)
            yield "statistics", {name: b.numpy().copy() for name, b in buffers}
        yield from loop.advance(number)


def trained(net: nn.Module, probe: Probe, training: Training) -> Tensors:
    """Only the training: what it adds to every parameter (`training.parameter`); `net` is left unchanged."""
    net, found = copy.deepcopy(net).train(), {}
    loop = Loop(updated(net, probe), training)
    for number in range(training.passes):
        with tapped(net, Tap(), ()):
            values = run(net, probe, inputs_of(probe))
        backward(loss_of(probe, values), probe)
        for quantity, tensors in loop.advance(number):
            found |= tensors if quantity == "training.parameter" else {}
    return found


class Loop:
    """PyTorch's training of a network, which is notified of every backward pass."""

    def __init__(self, tensors: Mapping[str, Tensor], training: Training) -> None:
        self.tensors, self.training = tensors, training
        self.params = {name: t for name, t in tensors.items() if isinstance(t, nn.Parameter)}
        if training.steps:
            self.start = {name: t.detach().clone() for name, t in tensors.items()}
            with raising(OPTIMIZER, expected=OF_GRADIENTS):
                made = training.optimizer(self.params)
            self.optimizer, self.scheduler = made if isinstance(made, tuple) else (made, None)

    def advance(self, number: int) -> Iterator[tuple[str, Tensors]]:
        """Finish the backward pass with this number, from 0; return the tensors, if they are compared then."""
        if not self.training.steps or (number + 1) % self.training.accumulate:
            return
        self.training.prepare(self.params)
        with raising(OPTIMIZER, expected=OF_GRADIENTS):
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        self.optimizer.zero_grad()
        if step := self.training.done(number):
            updates = {name: (t.detach() - self.start[name]).numpy() for name, t in self.tensors.items()}
            yield "training.parameter", after(step, updates)
            del updates
            yield "training.state", after(step, self._state())

    def _state(self) -> Tensors:
        held = getattr(self.optimizer, "state", {})
        return {
            f"{key}/{name}": tensor.detach().numpy().copy()
            for name, p in self.params.items()
            for key, tensor in held.get(p, {}).items()
            if isinstance(tensor, Tensor) and tensor.shape == p.shape and key != "step"
        }

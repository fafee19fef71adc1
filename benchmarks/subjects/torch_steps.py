"""Steps of PyTorch networks: eager, compiled, channels last, in every precision. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.subjects.case import NetworkCase
from benchmarks.subjects.settings import LEARNING_RATE, MOMENTUM, RESULT, WEIGHT_DECAY
from benchmarks.subjects.subject import SubjectOptions
from parity.numerics.layouts import leaves
from parity.running.tf32 import products
from ports import families

EAGER = SubjectOptions()
Outputs = Tensor | Mapping[str, Tensor]  # a network with several heads gives a dict


def device(name: str) -> torch.device:
    return torch.device("cuda" if name == "gpu" else "cpu")


@contextmanager
def policy(precision: str, where: str) -> Iterator[None]:
    """The policy of `benchmarks.subjects.settings.PRECISIONS` for the time of the block."""
    tf32 = products(precision == "tf32") if where == "gpu" else nullcontext()
    with tf32, torch.autocast(device(where).type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield


def training_step(
    net: Callable[[Tensor], Outputs],
    parameters: Iterable[Tensor],
    loss_of: Callable[[Outputs, Tensor], Tensor],
    fused: bool = False,
) -> Callable[[Tensor, Tensor], Tensor]:
    """A step of SGD on the loss of outputs and targets; gives the loss."""
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=fused)

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(net(images), labels)
        with torch.autocast(images.device.type, enabled=False):
            loss.backward()
            optimizer.step()
        return loss.detach()

    return step


def numbers(outputs: Outputs, name: str) -> dict[str, np.ndarray]:
    """Return each output in float64 by its name, which begins with `name`."""
    return {own: tensor.detach().double().cpu().numpy() for own, tensor in leaves(outputs, name)}


class TorchRun:
    """A PyTorch network as a subject.

    Args:
        net: in the mode of the setting, with the case's weights.
        read: the weights now, in the torch form.
        call: gives its logits, if calling the network does not.
    """

    def __init__(
        self,
        case: NetworkCase,
        net: nn.Module,
        read: Callable[[], Mapping[str, np.ndarray]],
        options: SubjectOptions,
        call: Callable[[Tensor], Outputs] | None = None,
    ) -> None:
        setting = case.setting
        self.setting, self.read = setting, read
        self.device = device(setting.device)
        if setting.device == "gpu":
            torch.backends.cudnn.benchmark = True
            torch.cuda.reset_peak_memory_stats()
        kept = torch.channels_last if options.channels_last else torch.contiguous_format
        self.net = net.to(self.device).to(memory_format=kept)  # pyright: ignore[reportCallIssue]
        self.net.train(setting.mode == "training")
        images = [torch.from_numpy(one).to(self.device) for one in case.images]
        self.images = [one.contiguous(memory_format=kept) if one.ndim == 4 else one for one in images]
        self.labels = [torch.from_numpy(one).to(self.device) for one in case.labels]
        forward: Callable[[Tensor], Outputs] = call or self.net
        if options.compile is not None:
            if options.freeze and setting.mode == "inference":
                import torch._inductor.config as inductor

                inductor.freezing = True
            forward = torch.compile(forward, mode=options.compile)
        self.forward = forward
        fused = self.device.type == "cuda" or options.compile is not None
        loss_of = families.objective_of(case.spec).in_torch()
        step = training_step(forward, self.net.parameters(), loss_of, fused)
        self.train = step if setting.mode == "training" else None

    def step(self, which: int) -> Outputs:
        with self.policy():
            if self.train is not None:
                return self.train(self.images[which], self.labels[which])
            with torch.no_grad():
                return self.forward(self.images[which])

    def policy(self) -> AbstractContextManager[None]:
        """Nothing, where PyTorch's own defaults are the policy."""
        if (self.setting.precision, self.setting.device) == ("float32", "cpu"):
            return nullcontext()
        return policy(self.setting.precision, self.setting.device)

    def wait(self, result: Outputs) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def numbers(self, result: Outputs) -> dict[str, np.ndarray]:
        return numbers(result, RESULT[self.setting.mode])

    def weights(self) -> Mapping[str, np.ndarray]:
        return self.read()

    def programs(self) -> int:
        from torch._dynamo.utils import counters

        return counters["stats"]["unique_graphs"]

    def memory(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def rest(self) -> None:
        """Give back GPU memory that no tensor uses: other processes need it while this one waits."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reserved(self) -> tuple[int, int]:
        """Return the bytes of the GPU's memory that this process took at most, and keeps after `rest`."""
        most = torch.cuda.max_memory_reserved()
        self.rest()
        return most, torch.cuda.memory_reserved()

    def cost(self) -> dict[str, float]:
        return {}

    asynchronous = property(lambda self: self.device.type == "cuda")


def build(case: NetworkCase, options: SubjectOptions = EAGER) -> TorchRun:
    """Build this package's PyTorch port."""
    import ports

    net = ports.create(case.spec, "pytorch", seed=None)
    if options.fast:
        ports.fast.use(net)
    ports.weights.write(net, case.weights)
    return TorchRun(case, net, lambda: ports.weights.read(net), options)


def ceilings(where: str, precision: str) -> dict[str, float]:
    """FLOP/s of a large product of matrices and bytes/s of a large copy (read and written), the best of three."""
    import time

    at = device(where)
    n, length = (8192, 2**30) if where == "gpu" else (2048, 2**27)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(n, n, device=at).to(dtype) for _ in range(2))
    source = torch.ones(length // 4, device=at)
    target = torch.empty_like(source)

    def best(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            run()
            if at.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return min(times[1:])

    with policy(precision, where):
        product = best(lambda: a @ b)
    return {"flops": 2 * n**3 / product, "bytes": 2 * length / best(lambda: target.copy_(source))}

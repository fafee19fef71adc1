"""Programs that `ports.export` wrote, read back and timed: the programs that people deploy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ports
from benchmarks.subjects.case import NetworkCase
from benchmarks.subjects.subject import SubjectOptions

if TYPE_CHECKING:
    from benchmarks.subjects.jax_steps import JaxRun
    from benchmarks.subjects.torch_steps import TorchRun


def build_torch(case: NetworkCase, options: SubjectOptions) -> TorchRun:
    """`torch.export`'s file of the PyTorch port, under `torch.compile`."""
    import torch

    from benchmarks.subjects.torch_steps import TorchRun, device

    net = ports.create(case.spec, "pytorch", seed=None)
    ports.weights.write(net, case.weights)
    if options.channels_last:
        net = net.to(memory_format=torch.channels_last)
    return TorchRun(
        case,
        net,
        lambda: ports.weights.read(net),
        options,
        call=_through_a_file(net.to(device(case.setting.device)), case, "net.pt2"),
    )


def build_nnx(case: NetworkCase, _: SubjectOptions) -> JaxRun:
    """`jax.export`'s file of the NNX port: its weights are constants of the program."""
    from benchmarks.subjects.jax_steps import JaxRun, dtype, policy

    policy(case.setting)
    net = ports.create(case.spec, "nnx", seed=None, dtype=dtype(case.setting))
    ports.weights.write(net, case.weights)
    run = _through_a_file(net, case, "net.stablehlo")
    return JaxRun(case, lambda images, _: run(images), lambda: ports.weights.read(net), wide=True)


def _through_a_file(net: object, case: NetworkCase, name: str) -> Callable[..., Any]:
    """Write inference into a file, and return what reads it back."""
    path = case.place / name
    ports.export.save(net, path, case.setting.size, batch=case.setting.batch, force=True)
    return ports.export.load(path)

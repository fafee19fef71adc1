"""How much of a GPU's memory a program needs, before anybody has measured it.

An estimate on the safe side. It counts what backpropagation keeps (every convolution's output three times: as it is,
normalised, and rectified), parameters with their gradients and momentum, the input sets, and the memory that a
framework needs to start.
"""

from __future__ import annotations

from functools import cache

from benchmarks.subjects.settings import OWN, SETS, Setting
from benchmarks.subjects.subject import TimedSubject
from ports import families

START = 1.5e9  # bytes of a framework's context, libraries and workspaces
KEPT = 3  # copies of a convolution's output that training keeps
EAGER = 2.2  # copies that the reference keeps, in float64: ReLU and the next convolution share theirs


def need(setting: Setting) -> float:
    """Return the most bytes of device memory that a program of this setting takes."""
    return _most(setting, 2 if setting.precision == "bfloat16" else 4, KEPT)


def reference(setting: Setting, width: int) -> float:
    """Return the most bytes of device memory that computing the reference takes, with numbers of `width` bytes."""
    return _most(setting, width, EAGER)


def _most(setting: Setting, width: int, copies: float) -> float:
    """Estimate the bytes where a number in an activation has `width` bytes."""
    if OWN in setting.network:
        return START
    given, outputs, largest, parameters = _sizes(setting.network, setting.size)
    inputs = SETS * setting.batch * given * 4
    if setting.mode == "inference":
        return START + inputs + 4 * parameters + setting.batch * largest * width * 4
    return START + inputs + 16 * parameters + setting.batch * outputs * width * copies


def rest(setting: Setting, subject: TimedSubject) -> float:
    """Return the bytes that a program holds while another one is timed.

    PyTorch gives memory back between its blocks, except for the memory of its CUDA graphs. XLA's allocator keeps
    everything.
    """
    graphs = subject.options.compile not in (None, "default")
    if subject.framework == "jax" or graphs or OWN in setting.network:
        return need(setting)
    given, _, _, parameters = _sizes(setting.network, setting.size)
    return min(need(setting), START + SETS * setting.batch * given * 4 + 16 * parameters)


@cache
def _sizes(network: str, size: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Count, for one example: numbers in its inputs, in all layers' outputs, in the largest, and the parameters.

    Layers are convolutions and linear ones.
    """
    from torch import nn

    from ports.building import pytorch

    spec = families.get(network)
    net = pytorch.skeleton(spec).eval()
    outputs: list[int] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, __, output: outputs.append(output.numel()))
    inputs = pytorch.meta_inputs(spec, 1, size)
    net(*inputs)
    given = sum(one.numel() for one in inputs)
    return given, sum(outputs), max(outputs), sum(p.numel() for p in net.parameters())

"""The least cost of a network's step: FLOP, and bytes to and from memory; counted from its layers.

FLOP: two for every multiplication and addition of convolutions and matrix products; training adds the gradients with
respect to filters and, but for the first layer, to inputs. Bytes: activations and filters that a program moves if its
pointwise operations are fused into one pass each, as Inductor and XLA do:

- inference: every convolution reads its input and its filters and writes its output; BatchNorm, ReLU and the addition
  are one pass: they read the output (and the shortcut) and write once;
- training, forward: besides that, BatchNorm reads the output once for its statistics. Backward: BatchNorm and ReLU read
  gradient and output for their sums, and again to write the gradient; a convolution reads gradient and filters to write
  its input's gradient, and gradient and input to write its filters'. The optimizer reads parameter, gradient and
  buffer and writes two of them.

All products of a convolution count, though by `ports/fast/winograd.py` (`-fast` rows) a window of 3 by 3 takes less
than half of them. This is a model, not a measurement. It shows how far a step is from the limits of memory or
arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from benchmarks.subjects.settings import Setting
from ports.family import Description


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    flops: float
    bytes: float

    def seconds(self, ceiling: dict[str, float]) -> float:
        """The least time on a device with these ceilings."""
        return max(self.flops / ceiling["flops"], self.bytes / ceiling["bytes"])

    def bound(self, ceiling: dict[str, float]) -> str:
        return "arithmetic" if self.flops / ceiling["flops"] > self.bytes / ceiling["bytes"] else "memory"


@cache
def cost(spec: Description, setting: Setting) -> Cost:
    """The cost of a step in this setting."""
    import torch
    from torch import nn

    from ports.building import pytorch

    net = pytorch.skeleton(spec).eval()
    rows: list[tuple[int, int, int, int, bool]] = []

    def seen(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        per_output = weight.numel() // weight.shape[0]
        rows.append((inputs[0].numel(), output.numel(), weight.numel(), 2 * output.numel() * per_output, not rows))

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(seen)  # pyright: ignore[reportArgumentType]
    net(*pytorch.meta_inputs(spec, setting.batch, setting.size))
    blocks = spec.number_of_blocks
    parameters = sum(p.numel() for p in net.parameters())
    shortcuts = (
        blocks * sum(out for _, out, *_ in rows[:-1]) / max(1, len(rows) - 1)
    )  # one reading a block, of a mean output
    width = 2 if setting.precision == "bfloat16" else 4
    flops = moved = 0.0
    for given, out, weight, forward, first in rows:
        flops += forward
        moved += width * (given + 3 * out + weight)
        if setting.mode == "training":
            flops += forward * (1 if first else 2)
            moved += width * (out + 5 * out + (0 if first else out + weight + given) + out + given + weight)
    moved += width * shortcuts * (1 if setting.mode == "inference" else 3)
    if setting.mode == "training":
        moved += 4 * 5 * parameters
    return Cost(flops, moved)

"""Who is timed: a row a subject. A peer is what somebody would take instead of the ports of this package.

To add one: a row here, and a function in the module that it names which gives a `benchmarks.clock.Run` (most are a few
lines around `TorchRun` or `JaxRun`). A subject whose numbers are not PyTorch's is refused by the gate, whoever wrote
it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.settings import OWN


@dataclass(frozen=True)
class Subject:
    """One row.

    Attributes:
        framework: `pytorch` or `jax`: what the process loads, and whose ratio it counts in.
        build: `module:function` within `benchmarks`, from a `benchmarks.gate.Case` and the options to a `Run`.
        about: for somebody who reads the table.
        peer: not of this package; runs with `--peers`.
        needs: packages beyond those that this package needs anyway.
        only: the modes, devices and networks that it is for; all where none is named.
        quick: whether `--quick` has it.
        own: for somebody's own pair of models.
        changes: what its network has otherwise, as fields of the description; it is held against PyTorch's of that.
    """

    name: str
    framework: str
    build: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: bool = False
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    quick: bool = True
    own: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    def suits(self, network: str, mode: str, device: str) -> bool:
        pairs = ((self.networks, network), (self.modes, mode), (self.devices, device))
        return self.own == (OWN in network) and all(not allowed or given in allowed for allowed, given in pairs)

    def missing(self) -> str | None:
        """The package that it lacks here."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)


COMPILE: dict[str, Any] = {"channels_last": True, "compile": {}}
MOST: dict[str, Any] = {"channels_last": True, "compile": {"mode": "max-autotune"}, "freeze": True}
GRAPHS: dict[str, Any] = {"channels_last": True, "compile": {"mode": "reduce-overhead"}}

KERAS: dict[str, Any] = {"stride_at": 0}  # of the bottleneck, as He et al. have it

SUBJECTS = {
    row.name: row
    for row in (
        Subject("pytorch", "pytorch", "torch_steps:build", "eager"),
        Subject(
            "pytorch-channels-last", "pytorch", "torch_steps:build", "eager, channels last", {"channels_last": True}
        ),
        Subject("pytorch-compile", "pytorch", "torch_steps:build", "torch.compile, channels last", COMPILE),
        Subject(
            "pytorch-max-autotune",
            "pytorch",
            "torch_steps:build",
            "torch.compile(mode='max-autotune'), channels last; in inference Inductor's freezing",
            MOST,
        ),
        Subject(
            "pytorch-cuda-graphs",
            "pytorch",
            "torch_steps:build",
            "torch.compile(mode='reduce-overhead'), channels last",
            GRAPHS,
            devices=("gpu",),
        ),
        Subject("nnx", "jax", "jax_steps:build_nnx", "split once, jax.jit on the list of arrays"),
        Subject("nnx-jit", "jax", "jax_steps:build_nnx", "nnx.jit", {"plain": True}),
        Subject("linen", "jax", "jax_steps:build_linen", "jax.jit"),
        Subject(
            "linen-lax",
            "jax",
            "jax_steps:build_linen",
            "jax.jit; 1x1 convolutions as XLA has them",
            {"lax": True},
            devices=("cpu",),
            quick=False,
        ),
        Subject("own-pytorch", "pytorch", "pair:build_torch", "your PyTorch model, eager", own=True),
        Subject(
            "own-pytorch-compile",
            "pytorch",
            "pair:build_torch",
            "your PyTorch model, torch.compile",
            {"compile": {}},
            own=True,
        ),
        Subject("own-flax", "jax", "pair:build_flax", "your Flax model, jax.jit", own=True),
        Subject(
            "transformers",
            "pytorch",
            "peers:build_transformers",
            "Hugging Face's ResNet, torch.compile, channels last",
            COMPILE,
            peer=True,
            needs=("transformers",),
            networks=("resnet50",),
        ),
        Subject(
            "transformers-eager",
            "pytorch",
            "peers:build_transformers",
            "Hugging Face's ResNet, eager, channels last",
            {"channels_last": True},
            peer=True,
            needs=("transformers",),
            networks=("resnet50",),
        ),
        Subject(
            "torchvision",
            "pytorch",
            "peers:build_torchvision",
            "torch.compile, channels last",
            COMPILE,
            peer=True,
            needs=("torchvision",),
            networks=("resnet18", "resnet50", "resnet152"),
        ),
        Subject(
            "timm",
            "pytorch",
            "peers:build_timm",
            "torch.compile, channels last",
            COMPILE,
            peer=True,
            needs=("timm", "torchvision"),
            networks=("resnet18", "resnet50", "resnet152"),
        ),
        Subject(
            "haiku",
            "jax",
            "peers:build_haiku",
            "dm-haiku's hk.nets, jax.jit",
            peer=True,
            needs=("haiku",),
            networks=("resnet18", "resnet50", "resnet152"),
        ),
        Subject(
            "keras-jax",
            "jax",
            "peers_keras:build_jax",
            "keras.applications on JAX, jax.jit; stride on the first 1x1",
            changes=KERAS,
            peer=True,
            needs=("keras",),
            networks=("resnet50",),
        ),
        Subject(
            "keras-torch",
            "pytorch",
            "peers_keras:build_torch",
            "keras.applications on PyTorch, eager; stride on the first 1x1",
            changes=KERAS,
            peer=True,
            needs=("keras",),
            networks=("resnet50",),
        ),
    )
}

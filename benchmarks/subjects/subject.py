"""The record of a row in `benchmarks.subjects.roster`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.subjects.settings import OWN
from ports import families

FAST = "-fast"  # at the end of a subject's name: the port with `ports.fast`
SWEPT = ":"  # in a subject's name, between what it is and the variable that its process has (`--flags`)


@dataclass(frozen=True)
class SubjectOptions:
    """How a subject is run.

    Attributes:
        fast: with `ports.fast`.
        channels_last: (PyTorch) images and filters in memory as (batch, height, width, channels).
        compile: (PyTorch) mode of `torch.compile`; None runs it as it is.
        freeze: (PyTorch) Inductor takes the weights for constants (inference alone).
        plain: (NNX) under `nnx.jit`, as most people write it, which takes the model apart and puts it together each
            step.
        tune: (JAX) with the XLA options that measure quickest here.
    """

    fast: bool = False
    channels_last: bool = False
    compile: str | None = None
    freeze: bool = False
    plain: bool = False
    tune: bool = False


@dataclass(frozen=True)
class TimedSubject:
    """One row.

    Attributes:
        framework: `pytorch` or `jax`: the framework that the process loads, and in whose ratio it counts.
        build: `module:function` within `benchmarks.subjects`, from a `SubjectCase` and the options to a `BuiltSubject`.
        about: for readers of the table.
        peer: not of this package; runs with `--peers`.
        needs: packages beyond those that this package needs anyway.
        modes, devices, networks: those that it is for; empty means all.
        quick: whether `--quick` includes it.
        swept: runs with `--flags`.
        folded: its network has its BatchNorms folded into convolutions; it is compared with the whole network.
        environment: variables of its process.
        images: only for networks that take images.
        own: for somebody's own pair of models.
        changes: changed fields of the network's description; it is compared with a PyTorch network of this description.
    """

    name: str
    framework: str
    build: str
    about: str
    options: SubjectOptions = SubjectOptions()
    peer: bool = False
    needs: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    quick: bool = True
    own: bool = False
    swept: bool = False
    folded: bool = False
    images: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    def suits(self, network: str, mode: str, device: str) -> bool:
        pairs = ((self.networks, network), (self.modes, mode), (self.devices, device))
        if self.own != (OWN in network) or not all(not allowed or given in allowed for allowed, given in pairs):
            return False
        if self.own or network not in families.NETWORKS:
            return True
        family = families.family_of(families.NETWORKS[network])
        return (not self.folded or family.has_option("folded")) and (not self.images or family.takes_images)

    def missing(self) -> str | None:
        """A package that it needs and that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)

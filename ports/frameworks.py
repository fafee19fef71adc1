"""One record per framework: how to recognise its live networks, and which modules read, write and export them.

This module loads no framework: a live network's framework is already loaded, and the other modules are imported when
they are used. No other module of `ports` asks which framework a network belongs to.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ports.errors import UserError

if TYPE_CHECKING:
    import os

    import numpy as np

    from ports.weights.form.torch_form import Rule
    from ports.weights.layers.leaves import Leaf

Net = Any  # a `torch.nn.Module`, an `nnx.Module`, or Linen's `(module, variables)`


@runtime_checkable
class Live(Protocol):
    """The functions of each module in `ports.weights.live`, for the networks of its framework."""

    def read(self, net: Net, copy: bool = True) -> dict[str, np.ndarray]: ...
    def write(
        self, net: Net, weights: Mapping[str, np.ndarray], rules: Sequence[Rule] = (), copy: bool = True
    ) -> dict[str, object] | None: ...
    def tensors(self, net: Net) -> dict[str, np.ndarray]:
        """The tensors under the framework's own names."""
        ...


@runtime_checkable
class FlaxLive(Live, Protocol):
    """The additional functions of Flax's modules."""

    def parameters(self, net: Net) -> dict[str, tuple[Leaf, list[tuple[str | int, ...]]]]:
        """The leaf of each parameter, and the paths of its arrays in a tree with the structure of the parameters."""
        ...

    def tree(self, net: Net) -> object:
        """All that the network holds, as one pytree."""
        ...

    def with_tree(self, net: Net, tree: object) -> Net:
        """The network with another pytree of the same form; an NNX network is changed in place."""
        ...


@runtime_checkable
class Loader(Protocol):
    """The function that reads an exported network."""

    def load(self, path: os.PathLike[str]) -> Callable[[Any], Any]: ...


@runtime_checkable
class Exporter(Protocol):
    """The functions of each module in `ports.export`, for the networks of its framework."""

    def check(self, platforms: Sequence[str]) -> None:
        """Raise if such a file cannot be written."""
        ...

    def save(
        self, net: Net, path: os.PathLike[str], batch: int | None, size: tuple[int, int, int], platforms: Sequence[str]
    ) -> None:
        """Args: size: channels, height, width."""
        ...


@dataclass(frozen=True)
class Port:
    """One framework.

    Attributes:
        name: its name in `ports.create`, and of its modules in this package.
        layout: whose names and layouts its tensors have in a file.
        detect: whether a value is one of its live networks. It looks up the framework's modules only if they are
            loaded.
        suffix: of the file of an exported network.
        program: the module of `ports.export` that reads such a file, without the framework of the network.
        collections: the first parts of its names: a tree of such a network has these tables on top.
        owner: gives the module of a live network.
    """

    name: str
    layout: str
    detect: Callable[[Net], bool]
    suffix: str
    program: str
    collections: tuple[str, ...] = ()
    owner: Callable[[Net], object] = lambda net: net

    @property
    def live(self) -> Live:
        """The module that reads and writes its networks."""
        return cast(Live, importlib.import_module(f"ports.weights.live.{self.name}"))

    @property
    def flax_live(self) -> FlaxLive:
        """The same for one of Flax's interfaces.

        Raises:
            UserError: it is not.
        """
        if not self.is_flax:
            raise UserError(f"got a network of {self.name}, expected one of Flax")
        return cast(FlaxLive, self.live)

    @property
    def exporter(self) -> Exporter:
        """The module that exports its networks."""
        return cast(Exporter, importlib.import_module(f"ports.export.{self.name}"))

    @property
    def loader(self) -> Loader:
        """The module that reads what `exporter` wrote."""
        return cast(Loader, importlib.import_module(f"ports.export.{self.program}"))

    @property
    def is_flax(self) -> bool:
        """Whether its tensors have Flax's names and layouts."""
        return self.layout != "torch"


def _is_module(name: str) -> Callable[[Net], bool]:
    def detect(net: Net) -> bool:
        package = sys.modules.get(name)
        return package is not None and isinstance(net, package.Module)

    return detect


_is_linen_module = _is_module("flax.linen")


def _is_pair(net: Net) -> bool:
    return isinstance(net, tuple) and len(net) == 2 and _is_linen_module(net[0]) and isinstance(net[1], Mapping)


PORTS = {
    port.name: port
    for port in (
        Port("pytorch", "torch", _is_module("torch.nn"), ".pt2", "pytorch"),
        Port("nnx", "nnx", _is_module("flax.nnx"), ".stablehlo", "flax"),
        Port(
            "linen",
            "linen",
            _is_pair,
            ".stablehlo",
            "flax",
            collections=("params", "batch_stats"),
            owner=lambda net: net[0],
        ),
    )
}
FRAMEWORKS = tuple(PORTS)
LAYOUTS = {port.layout: port for port in PORTS.values()}


def port_of(net: Net) -> Port:
    """Return the record of a live network's framework.

    Raises:
        UserError: `net` is not a `torch.nn.Module`, an `nnx.Module` or Linen's `(module, variables)`.
    """
    for port in PORTS.values():
        if port.detect(net):
            return port
    got = f"{type(net).__module__}.{type(net).__qualname__}"
    hint = "; for Linen give the pair (module, variables)" if _is_linen_module(net) else ""
    raise UserError(f"got {got}, expected a torch.nn.Module, an nnx.Module or Linen's (module, variables){hint}")


def framework_of(net: Net) -> str:
    """Return `pytorch`, `nnx` or `linen`.

    Raises:
        UserError: as `port_of`.
    """
    return port_of(net).name

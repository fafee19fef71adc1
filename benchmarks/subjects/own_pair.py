"""Anybody's own pair of models: `python -m benchmarks ./pair.py:make`.

`make` returns `(torch_model, flax_model, *inputs)`, as for `parity check`. That check runs first, in float64: a pair
that is not equal there is not timed. Then the gate compares each side, in float32, with PyTorch in float64 on these
inputs. Training is SGD on the mean of every output times fixed random numbers, as the check has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from jaxtyping import PyTree
from torch import Tensor, nn

from benchmarks.subjects.case import Numbers, SubjectCase
from benchmarks.subjects.jax_steps import JaxRun, compiled_for
from benchmarks.subjects.settings import SETS
from benchmarks.subjects.subject import SubjectOptions
from benchmarks.subjects.torch_steps import TorchRun, device, policy
from parity.numerics.calls import Call
from parity.numerics.layouts import default_layout, leaves, mapped, to_flax
from parity.numerics.layouts import to_reference as back
from parity.running import losses
from ports.errors import UserError
from ports.frameworks import port_of

Tree = PyTree[jax.Array]
FlaxModel = nnx.Module | tuple[Any, Any]  # a Linen model is its module and its variables
# Options with which the two sides are called differently.
UNTIMED = ("torch_keywords", "flax_keywords", "torch_call", "flax_call", "modes")
RATE = 1e-4  # learning rate: small, so that the numbers of any model stay finite


@dataclass(frozen=True)
class OwnSubject:
    """What somebody's function returns; `options` are those of the check."""

    torch_model: nn.Module
    flax_model: FlaxModel
    inputs: tuple[np.ndarray, ...]
    options: Mapping[str, Any]

    @property
    def keywords(self) -> Mapping[str, Any]:
        return self.options.get("keywords") or {}

    @property
    def layouts(self) -> Mapping[str, str]:
        return self.options.get("layouts") or {}


def load_pair(path: str) -> OwnSubject:
    """Call somebody's function; its inputs become numpy arrays.

    Raises:
        UserError: it does not return a pair with inputs, or the two sides are called differently.
    """
    from parity.commands.cli import pair

    (torch_model, flax_model, *given), options = pair(path)
    inputs = tuple(np.asarray(v.detach().numpy() if hasattr(v, "detach") else v) for v in given)
    if not inputs or any(not array.ndim for array in inputs):
        raise UserError(f"{path}: got no inputs with a batch, expected (torch_model, flax_model, *inputs)")
    if unused := [name for name in UNTIMED if options.get(name)]:
        raise UserError(
            f"{path}: got {', '.join(unused)}; the benchmark calls both models alike, and only takes keywords="
        )
    return OwnSubject(torch_model, flax_model, inputs, options)


def _is_random_key(leaf: jax.Array) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def keep(place: Path, pair: OwnSubject) -> None:
    """Write the weights of both models: `make` may draw new ones in every process."""
    from ports.weights.live.pytorch import to_numpy

    state: dict[str, Any] = {name: to_numpy(tensor) for name, tensor in pair.torch_model.state_dict().items()}
    np.savez(place / "torch.npz", **state)
    arrays = jax.tree.leaves(port_of(pair.flax_model).flax_live.tree(pair.flax_model))
    np.savez(place / "flax.npz", *(np.asarray(array) for array in arrays if not _is_random_key(array)))


def load_torch(place: Path, pair: OwnSubject) -> nn.Module:
    """Return the PyTorch model with the weights that `keep` wrote."""
    pair.torch_model.load_state_dict({n: torch.from_numpy(a) for n, a in np.load(place / "torch.npz").items()})
    return pair.torch_model


def load_flax(place: Path, pair: OwnSubject) -> FlaxModel:
    """Return the Flax model with the weights that `keep` wrote."""
    values = iter(np.load(place / "flax.npz").values())

    def exchanged(leaf: jax.Array) -> jax.Array:
        return leaf if _is_random_key(leaf) else jax.numpy.array(next(values), leaf.dtype)

    live = port_of(pair.flax_model).flax_live
    return live.with_tree(pair.flax_model, jax.tree.map(exchanged, live.tree(pair.flax_model)))


def narrow(array: np.ndarray) -> np.ndarray:
    """Return an input in the type that is timed."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def input_sets(inputs: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, ...]]:
    """Return different sets of inputs that steps take in turn; the first set is the given one."""

    def turned(array: np.ndarray, i: int) -> np.ndarray:
        moved = np.roll(array, i, axis=0)
        return (moved * (1 + 0.01 * i)).astype(array.dtype) if array.dtype.kind == "f" else moved

    return [tuple(turned(array, i) for array in inputs) for i in range(SETS)]


class OwnTorch(TorchRun):
    """The PyTorch side."""

    def __init__(self, case: SubjectCase, options: SubjectOptions) -> None:
        setting = case.setting
        self.setting, self.device = setting, device(setting.device)
        pair = load_pair(setting.network)
        model = load_torch(case.place, pair).to(self.device).train(setting.mode == "training")
        call = model if options.compile is None else torch.compile(model, mode=options.compile)
        self.fed = [self.inputs_of(one, None, setting.device) for one in input_sets(pair.inputs)]
        self.call = lambda which: call(*self.fed[which], **pair.keywords)
        self.loss = losses.projection(0).torch
        self.optimizer = torch.optim.SGD(model.parameters(), RATE) if setting.mode == "training" else None

    @staticmethod
    def inputs_of(inputs: tuple[np.ndarray, ...], dtype: torch.dtype | None, where: str) -> list[Tensor]:
        """Return inputs as tensors on a device; floating-point tensors have the type `dtype`."""
        tensors = [torch.from_numpy(np.array(narrow(array))).to(device(where)) for array in inputs]
        return [tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for tensor in tensors]

    def step(self, which: int) -> Any:
        with policy("float32", self.setting.device):
            if self.optimizer is None:
                with torch.no_grad():
                    return self.call(which)
            self.optimizer.zero_grad(set_to_none=True)
            value = self.loss(self.call(which))
            value.backward()
            self.optimizer.step()
            return value.detach()

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        return {name: value.double().cpu().numpy() for name, value in leaves(result, "output")}


class OwnFlax(JaxRun):
    """The Flax side: NNX or Linen, as pure functions under `jax.jit`."""

    def __init__(self, case: SubjectCase, options: SubjectOptions) -> None:
        import jax.numpy as jnp
        import optax

        from parity.running.flax_ports import FLAX_PORTS, port_of
        from parity.running.taps import Tap

        pair = load_pair(case.setting.network)
        model = load_flax(case.place, pair)
        net = FLAX_PORTS[port_of(model)].functional(model, {}, dtype="float32")
        train = case.setting.mode == "training"

        def laid_out(name: str, array: np.ndarray) -> jax.Array:
            array = narrow(array)
            return jnp.array(to_flax(array, pair.layouts.get(name, default_layout(array))))

        self.fed = [mapped(one, laid_out) for one in input_sets(pair.inputs)]
        self.images = self.labels = [None] * SETS
        self.read = dict

        def forward(params: Tree, stats: Tree, fed: Tree) -> tuple[Tree, Tree]:
            return net.forward(params, stats, fed, Call(keywords=pair.keywords), train, Tap())

        if not train:
            apply = compiled_for(case, lambda params, stats, fed: forward(params, stats, fed)[0], options.tune)
            self.which = lambda which: apply(net.params, net.stats, self.fed[which])
            self.program = lambda *_: (apply, net.params, net.stats, self.fed[0])
            return
        shapes = jax.eval_shape(lambda: forward(net.params, net.stats, self.fed[0])[0])
        loss = losses.projection(0).flax({name: _layout(value) for name, value in leaves(shapes, "output")})
        tx = optax.sgd(RATE)

        def step(params: Tree, stats: Tree, state: Tree, fed: Tree) -> tuple[Tree, Tree, Tree, jax.Array]:
            def objective(params: Tree) -> tuple[jax.Array, Tree]:
                values, changed = forward(params, stats, fed)
                return loss(values), changed

            (value, changed), grads = jax.value_and_grad(objective, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), changed, state, value

        run, held = compiled_for(case, step, options.tune, [0, 2]), [net.params, net.stats, tx.init(net.params)]

        def begin(which: int) -> jax.Array:
            *held[:], value = run(*held, self.fed[which])
            return value

        self.which = begin
        self.program = lambda *_: (run, *held, self.fed[0])

    def step(self, which: int) -> Tree:
        return self.which(which)

    def numbers(self, result: Tree) -> Numbers:
        found = {name: np.asarray(value).astype(np.float64) for name, value in leaves(result, "output")}
        return {name: back(value, _layout(value)) for name, value in found.items()}


def _layout(value: np.ndarray | jax.ShapeDtypeStruct) -> str:
    """Return the layout of an output: maps have their channels last."""
    return "channels_last" if value.ndim > 3 else "same"


def build_torch(case: SubjectCase, options: SubjectOptions) -> OwnTorch:
    return OwnTorch(case, options)


def build_flax(case: SubjectCase, options: SubjectOptions) -> OwnFlax:
    return OwnFlax(case, options)

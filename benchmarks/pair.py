"""Anybody's own pair of models: `python -m benchmarks ./pair.py:make`.

`make` returns `(torch_model, flax_model, *inputs)`, as for `parity check`. That check runs first, in float64: what is
not equal there is not timed. Then each side is held, in float32, against PyTorch in float64 on these inputs.
Training is SGD on the mean of every output times fixed random numbers, as the check has it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.gate import DRAWS, place_of
from benchmarks.jax_steps import JaxRun, compiled_for
from benchmarks.settings import SETS, UNITS, Setting
from benchmarks.torch_steps import TorchRun, device, policy
from parity import losses
from parity.bounds import distance, norm, one_ulp
from parity.layouts import default_layout, leaves, mapped, to_flax
from parity.layouts import to_reference as back
from ports.errors import UserError
from ports.frameworks import port_of


def made(path: str) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    """The models, the inputs as numpy arrays, and options."""
    from parity.cli import pair

    values, options = pair(path)
    inputs = tuple(np.asarray(v.detach().numpy() if hasattr(v, "detach") else v) for v in values[2:])
    if not inputs or any(not array.ndim for array in inputs):
        raise UserError(f"{path}: got no inputs with a batch, expected (torch_model, flax_model, *inputs)")
    return values[0], values[1], inputs, options


def _arrays(flax_model: Any) -> list[Any]:
    """What a Flax model holds, in order; keys of random numbers are no arrays."""
    import jax

    held = port_of(flax_model).flax_live.tree(flax_model)
    return [a for a in jax.tree.leaves(held) if not jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key)]


def keep(place: Path, torch_model: Any, flax_model: Any) -> None:
    """Writes the weights of both: `make` may draw others in every process."""
    from ports.weights.live.pytorch import to_numpy

    state: dict[str, Any] = {n: to_numpy(t) for n, t in torch_model.state_dict().items()}
    np.savez(place / "torch.npz", **state)
    np.savez(place / "flax.npz", *map(np.asarray, _arrays(flax_model)))


def kept(place: Path, torch_model: Any, flax_model: Any) -> tuple[Any, Any]:
    """Both models with the weights that were written."""
    import jax
    import torch

    torch_model.load_state_dict({n: torch.from_numpy(a) for n, a in np.load(place / "torch.npz").items()})
    values = iter(np.load(place / "flax.npz").values())

    def exchanged(leaf: Any) -> Any:
        key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if key else jax.numpy.array(next(values), leaf.dtype)

    live = port_of(flax_model).flax_live
    return torch_model, live.with_tree(flax_model, jax.tree.map(exchanged, live.tree(flax_model)))


def narrow(array: np.ndarray) -> np.ndarray:
    """Of an input the type that is timed."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def sets(inputs: tuple[np.ndarray, ...]) -> list[tuple[np.ndarray, ...]]:
    """As many sets of inputs as steps take in turn, none like another; the first are those given."""

    def turned(array: np.ndarray, i: int) -> np.ndarray:
        moved = np.roll(array, i, axis=0)
        return (moved * (1 + 0.01 * i)).astype(array.dtype) if array.dtype.kind == "f" else moved

    return [tuple(turned(array, i) for array in inputs) for i in range(SETS)]


def prepare(setting: Setting, folder: Path) -> list[str]:
    """The check in float64, and what each side must give. Returns the differences that its file has the check accept.

    Raises:
        UserError: no parity.
    """
    import torch

    import parity

    place = place_of(setting, {}, folder)
    torch_model, flax_model, inputs, options = made(setting.network)
    accepted: list[str] = list(options.get("accept") or ())
    if (place / "bounds.json").exists():
        return accepted
    report = parity.check(torch_model, flax_model, *inputs, **options)
    if not report:
        model = report.models[0]
        said = "; ".join(str(finding.text) for finding in model.findings[:2]) or str(
            model.undecided or "see `parity check`"
        )
        raise UserError(f"no parity: {said}")
    keywords = options.get("keywords") or {}

    def run(units: int, seed: int, wide: bool) -> dict[str, np.ndarray]:
        model, rng = copy.deepcopy(torch_model).to(device(setting.device)), np.random.default_rng([seed, 9])
        model.train(setting.mode == "training")
        fed = tuple(narrow(array) for array in inputs)
        if units:
            fed = tuple(one_ulp(array, rng, units) for array in fed)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor.copy_(torch.from_numpy(one_ulp(tensor.cpu().numpy(), rng, units)))
        model = model.double() if wide else model
        own = OwnTorch.inputs_of(fed, torch.float64 if wide else None, setting.device)
        with torch.no_grad(), policy("float32", setting.device):
            values = model(*own, **keywords)
            if setting.mode == "training":
                values = losses.projection(0).torch(values)
        return {name: value.double().cpu().numpy() for name, value in leaves(values, "output")}

    expected = run(0, 0, True)
    bounds = dict.fromkeys(expected, 0.0)
    for seed in range(DRAWS):
        for name, value in run(UNITS["float32"], seed, False).items():
            size = norm(expected[name])
            bounds[name] = max(bounds[name], distance(value, expected[name]) / size if size else 0.0)
    place.mkdir(parents=True, exist_ok=True)
    keep(place, torch_model, flax_model)
    np.savez(place / "expected.npz", **expected)  # pyright: ignore[reportArgumentType]
    (place / "bounds.json").write_text(json.dumps(bounds))
    return accepted


def case(setting: Setting, folder: Path) -> Case:
    """What `prepare` wrote; the subject makes the models itself."""
    place = place_of(setting, {}, folder)
    none: Any = None
    bounds = json.loads((place / "bounds.json").read_text())
    return Case(setting, none, {}, none, none, dict(np.load(place / "expected.npz")), bounds, place)


class OwnTorch(TorchRun):
    """The PyTorch side."""

    def __init__(self, case: Case, compile: Mapping[str, Any] | None = None) -> None:
        import torch

        self.setting, self.device = case.setting, device(case.setting.device)
        model, other, inputs, options = made(case.setting.network)
        model, _ = kept(case.place, model, other)
        model = model.to(self.device).train(case.setting.mode == "training")
        keywords = options.get("keywords") or {}
        call = model if compile is None else torch.compile(model, **compile)
        loss = losses.projection(0).torch
        self.fed = [self.inputs_of(one, None, case.setting.device) for one in sets(inputs)]
        step = torch.optim.SGD(model.parameters(), 1e-4) if case.setting.mode == "training" else None

        def begin(which: int) -> Any:
            if step is None:
                with torch.no_grad():
                    return call(*self.fed[which], **keywords)
            step.zero_grad(set_to_none=True)
            value = loss(call(*self.fed[which], **keywords))
            value.backward()
            step.step()
            return value.detach()

        self.begin = begin

    @staticmethod
    def inputs_of(inputs: tuple[np.ndarray, ...], dtype: Any, where: str) -> list[Any]:
        import torch

        tensors = [torch.from_numpy(np.array(narrow(array))).to(device(where)) for array in inputs]
        return [tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor for tensor in tensors]

    def step(self, which: int) -> Any:
        with policy("float32", self.setting.device):
            return self.begin(which)

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        return {name: value.double().cpu().numpy() for name, value in leaves(result, "output")}


class OwnFlax(JaxRun):
    """The Flax side: NNX or Linen, as pure functions under `jax.jit`; `tune` as in `compiled_for`."""

    def __init__(self, case: Case, tune: bool = False) -> None:
        import jax
        import jax.numpy as jnp
        import optax

        from parity.flax_ports import FLAX_PORTS, port_of
        from parity.taps import Tap

        other, model, inputs, options = made(case.setting.network)
        _, model = kept(case.place, other, model)
        net = FLAX_PORTS[port_of(model)].functional(model, {}, dtype="float32")
        keywords, given = options.get("keywords") or {}, options.get("layouts") or {}
        train = case.setting.mode == "training"

        def laid_out(name: str, array: np.ndarray) -> Any:
            array = narrow(array)
            return jnp.array(to_flax(array, given.get(name, default_layout(array))))

        self.fed = [mapped(one, laid_out) for one in sets(inputs)]
        self.images = self.labels = [None] * SETS
        self.read = dict

        def forward(params: Any, stats: Any, fed: Any) -> Any:
            return net.forward(params, stats, fed, keywords, train, Tap())

        if not train:
            apply = compiled_for(case, lambda params, stats, fed: forward(params, stats, fed)[0], tune)
            self.which = lambda which: apply(net.params, net.stats, self.fed[which])
            self.program = lambda *_: (apply, net.params, net.stats, self.fed[0])
            return
        shapes = jax.eval_shape(lambda: forward(net.params, net.stats, self.fed[0])[0])
        loss = losses.projection(0).flax({name: _layout(value) for name, value in leaves(shapes, "output")})
        tx = optax.sgd(1e-4)

        def step(params: Any, stats: Any, state: Any, fed: Any) -> Any:
            def objective(params: Any) -> Any:
                values, changed = forward(params, stats, fed)
                return loss(values), changed

            (value, changed), grads = jax.value_and_grad(objective, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), changed, state, value

        run, held = compiled_for(case, step, tune, [0, 2]), [net.params, net.stats, tx.init(net.params)]

        def begin(which: int) -> Any:
            *held[:], value = run(*held, self.fed[which])
            return value

        self.which = begin
        self.program = lambda *_: (run, *held, self.fed[0])

    def step(self, which: int) -> Any:
        return self.which(which)

    def numbers(self, result: Any) -> dict[str, np.ndarray]:
        found = {name: np.asarray(value).astype(np.float64) for name, value in leaves(result, "output")}
        return {name: back(value, _layout(value)) for name, value in found.items()}


def _layout(value: Any) -> str:
    """Of an output: maps have their channels last."""
    return "channels_last" if value.ndim > 3 else "same"


def build_torch(case: Case, **options: Any) -> OwnTorch:
    return OwnTorch(case, **options)


def build_flax(case: Case, **options: Any) -> OwnFlax:
    return OwnFlax(case, **options)

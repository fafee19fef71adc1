"""The check of somebody's own pair of models: layers are paired, weights compared, and then everything that is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import torch
from flax import linen

from parity.diagnosis import weights as moving
from parity.numerics.layouts import LAYOUTS, axes, leaves, mapped
from parity.numerics.quantities import Loss, Probe
from parity.pairing import ordering
from parity.pairing.matching import OPTIONAL, SECOND, Pairing, pair
from parity.reports.report import Model
from parity.running import flax as run_flax
from parity.running import inventory, losses, memory, training
from parity.running import probes as probe
from parity.running import pytorch as run_pytorch
from parity.running.flax import Functional
from parity.running.flax_ports import FLAX_PORTS
from parity.running.taps import Recorder, layer_of
from parity.traps.accepting import accepted
from parity.verdict import compare, roles, transfer
from ports import UserError, weights

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """A PyTorch model and a Flax model in float64, layer by layer.

    Attributes:
        reference: PyTorch's; the caller's own is left as it is.
        port: `nnx` or `linen`.
        state: PyTorch's tensors as they were given, recurrent biases folded, in float64.
        layers: Linen's modules by the names of their scopes.
        dtype: the type that the Flax model computes in.
    """

    reference: torch.nn.Module
    flax: Any
    port: str
    state: dict[str, np.ndarray]
    pairing: Pairing
    layers: dict[str, linen.Module] | None
    dtype: str = "float64"

    @property
    def tensors(self) -> dict[str, str]:
        """PyTorch's names of the tensors that are compared, by Flax's."""
        return {
            p.flax.tensors[leaf]: p.torch.tensors[leaf]
            for p in self.pairing.pairs
            for leaf in p.torch.tensors
            if leaf in p.flax.tensors and leaf not in OPTIONAL
        }

    @property
    def names(self) -> dict[str, str]:
        """PyTorch's names of the layers that are recorded, by Flax's."""
        found = {}
        for p in self.pairing.pairs:
            module = inventory.module_of(p.torch.name)
            if p.torch.kind != inventory.OWN and module == p.torch.name:
                found[p.flax.name] = module
        return found

    @property
    def second(self) -> dict[str, str]:
        """PyTorch's names, by Flax's, of second biases of recurrent layers: what is left of them when they are folded.

        The check does not compare them as tensors of their own.
        """
        both = (p for p in self.pairing.pairs if SECOND in p.torch.tensors and SECOND in p.flax.tensors)
        return {p.flax.tensors[SECOND]: p.torch.tensors[SECOND] for p in both}

    def moved(self, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what is written into the Flax model when it is given PyTorch's weights."""
        return {own: state[torch_name] for own, torch_name in (self.tensors | self.second).items()}

    def functional(self, state: Mapping[str, np.ndarray], names: Mapping[str, str], second: bool = False) -> Functional:
        """The Flax model with these weights.

        Args:
            second: whether what is left of second biases is written, too.
        """
        own = self.moved(state) if second else {own: state[torch_name] for own, torch_name in self.tensors.items()}
        port = FLAX_PORTS[self.port]
        new = port.written(port.copied(self.flax), own, self.layers)
        return port.functional(new, names, self.tensors, self.layers, self.dtype)


def check(
    model: torch.nn.Module,
    other: Any,
    inputs: Sequence[Any],
    *,
    port: str,
    names: Mapping[str, str] | None,
    loss: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None,
    layouts: Mapping[str, str] | None,
    keywords: Mapping[str, Any] | None,
    accept: Sequence[str],
    train: training.Maker,
    seed: int,
    working: Callable[..., Any],
    progress: Progress,
) -> Model:
    """See `parity.check`."""
    begin = time.monotonic()
    fed = feed(inputs, keywords, layouts, losses.given(*loss) if loss else losses.projection(seed))
    progress("pairing layers")
    both = paired(model, other, fed, port, names)
    _repeatable(both.reference, fed)
    title = type(model).__name__
    pairs = tuple(str(both.pairing).splitlines())
    judged = transfer.judge(port, both.pairing)
    found = moving.findings(port, both.pairing, judged, weights.read(model))
    if judged.misfits:
        seconds = round(time.monotonic() - begin, 2)
        return Model(title, (judged.row,), findings=tuple(found), seconds=seconds, pairing=pairs)
    state = probe.varied(both.state, {*both.tensors.values()}, seed)
    _write(both.reference, state)
    accepted(both.reference, accept)
    in_port = run_flax.parameter_leaves(both.functional(state, {}))
    fed = roles.assigned(both.reference, fed, {*both.tensors.values()}, in_port)
    how = train(both.reference, fed)
    if not how.own and not run_pytorch.parameters(both.reference, fed):
        how = replace(
            how, steps=0
        )  # all is frozen: PyTorch has no training that the check's own could be compared with
    used = _comparable(both, state, fed)
    result = compare.compare(
        both.reference,
        {port: lambda: both.functional(state, used)},
        fed,
        how,
        seed=seed,
        names=[name for name in both.names.values() if name in used.values()],
        progress=progress,
    )
    memory.release()

    def in_type(dtype: str, state: Mapping[str, np.ndarray]) -> Functional:
        flax = FLAX_PORTS[port].promote(other, dtype)
        return replace(both, flax=flax, dtype=dtype).functional(state, {})

    result["precision"] = working(both.reference, {port: in_type}, fed)
    result["rows"] = (judged.row, *result["rows"])
    result["findings"] = (*found, *(f for f in result["findings"] if f.trap or f.layer not in judged.tied))
    note = f"{len(both.pairing.pairs)} layers paired, seed {seed}" + roles.note(both.reference, fed)
    note += "".join(f", accepted: {name}" for name in accept)
    return Model(title, note=note, seconds=round(time.monotonic() - begin, 2), pairing=pairs, **result)


def move(
    model: torch.nn.Module, other: Any, inputs: Sequence[Any], port: str, names: Any, layouts: Any, keywords: Any
) -> Any:
    """See `parity.move`."""
    fed = feed(inputs, keywords, layouts, losses.projection(0))
    both = paired(model, other, fed, port, names)
    if problems := [misfit.text for misfit in transfer.judge(port, both.pairing).misfits]:
        raise weights.WeightsError(problems)

    places = FLAX_PORTS[port].places(other, both.layers)
    _fitting(both.moved(both.state), places)
    state = probe.varied(both.state, {*both.tensors.values()}, 0)
    _write(both.reference, state)

    def build(pairing: Pairing, names: Mapping[str, str]) -> Functional:
        return replace(both, pairing=pairing).functional(state, names, second=True)

    both = replace(both, pairing=ordering.settled(both.pairing, build, both.reference, fed))
    own = both.moved(both.state)
    _fitting(own, places)
    moved = FLAX_PORTS[port].written(other, own, both.layers)
    _read_back(own, FLAX_PORTS[port].places(moved, both.layers))
    return moved


def _fitting(own: Mapping[str, np.ndarray], places: Mapping[str, Any]) -> None:
    """Raise where a tensor loses bits in the Flax model's type, or has no place there."""
    problems = []
    for name, array in own.items():
        place = places[name]
        with np.errstate(all="ignore"):  # what overflows is refused
            narrowed = array.astype(place.dtype).astype(array.dtype)
        if not place.slots and array.any():
            problems.append(
                f"{name}: Flax's cell has no bias at the hidden state, which PyTorch's new gate multiplies by its "
                "reset gate; set that part of PyTorch's bias_hh to zero, or use a cell that has it "
                "(flax.linen.GRUCell)"
            )
        elif not np.array_equal(narrowed, array):
            problems.append(
                f"{name}: PyTorch's numbers lose bits in the Flax model's {place.dtype}; give it a wider param_dtype"
            )
    if problems:
        raise weights.WeightsError(problems)


def _read_back(own: Mapping[str, np.ndarray], places: Mapping[str, Any]) -> None:
    """Raise where the Flax model does not hold every bit that was written: a defect of this package."""
    for name, array in own.items():
        if np.asarray(places[name].read()).tobytes() != array.astype(places[name].dtype).tobytes():
            raise RuntimeError(f"{name}: the Flax model does not hold what was written into it")


def feed(
    inputs: Sequence[Any], keywords: Mapping[str, Any] | None, layouts: Mapping[str, str] | None, loss: Loss
) -> Probe:
    """The inputs as numpy arrays, numbers that are not whole in float64.

    Raises:
        UserError: no input, an input that is not numbers or not finite, two of one name, an unknown layout.
    """

    def array(name: str, value: Any) -> np.ndarray:
        value = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
            raise UserError(f"{name}: got an array of {value.dtype}, expected numbers")
        if value.dtype.kind not in "biu":
            value = value.astype(np.float64)
            if count := int((~np.isfinite(value)).sum()):
                raise UserError(f"{name}: {count} of {value.size} numbers are NaN or infinite, expected none")
        return value

    if not inputs and not keywords:
        raise UserError("got two models and no inputs; expected inputs behind them, in PyTorch's layout")
    arrays = mapped(tuple(inputs), array)
    named = mapped(dict(keywords or {}), array, "keyword")
    known = [n for n, _ in (*leaves(arrays, "input"), *leaves(named, "keyword"))]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise UserError(
            f"inputs: two arrays are called {twice[0]}, expected one; rename a key that holds a dot or number"
        )
    for name, layout in (layouts or {}).items():
        if name not in known:
            raise UserError(f"layouts: no input is called {name!r}; expected one of {', '.join(known)}")
        if layout not in LAYOUTS:
            raise UserError(f"layouts: {name}: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
    return Probe(arrays, loss, dict(layouts or {}), named)


def paired(model: torch.nn.Module, other: Any, fed: Probe, port: str, names: Mapping[str, str] | None) -> Pair:
    """Both models in float64, and which layer is which.

    Raises:
        UserError: a model that does not run on the inputs, a layer without a rule, layers that cannot be paired.
    """
    reference = run_pytorch.promote(model)
    state = _state(model)
    _write(reference, state)
    with inventory.raising("PyTorch"):
        ours = inventory.of_torch(reference, fed, state)
    with inventory.raising():
        flax = FLAX_PORTS[port].promote(other)
    layers = FLAX_PORTS[port].modules(flax, fed)
    theirs = FLAX_PORTS[port].inventory(flax, fed, layers)
    return Pair(reference, flax, port, state, pair(ours, theirs, names, port), layers)


def _state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The tensors in float64, recurrent biases folded in the model's own type; tied tensors are one array."""
    given = weights.fold_recurrent_biases(weights.read(model))
    state: dict[str, np.ndarray] = {}
    seen: dict[object, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        array = given[name]
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array = array.astype(np.float64)
            if count := int((~np.isfinite(array)).sum()):
                raise UserError(f"weights: {name}: {count} of {array.size} numbers are NaN or infinite, expected none")
        first = seen.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else name, name)
        state[name] = state.get(first, array)
    return state


def _write(net: torch.nn.Module, state: Mapping[str, np.ndarray]) -> None:
    weights.write(net, dict(state))


def _repeatable(net: torch.nn.Module, fed: Probe) -> None:
    """Raises where a second run gives other outputs: nothing could be compared with them."""
    for train in (False, True):
        runs = []
        for _ in range(2):
            copy = run_pytorch.promote(net).train(train)
            with torch.no_grad(), run_pytorch.tapped(copy, run_pytorch.Tap(), ()):
                runs.append(run_pytorch.outputs(run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))))
        for name, array in runs[0].items():
            if not np.array_equal(array, runs[1][name], equal_nan=True):
                mode = "train" if train else "eval"
                raise UserError(
                    f"the PyTorch model is random in {mode} mode: two runs on the same input differ in {name}; "
                    "expected none but dropout; draw random numbers outside and pass them as inputs"
                )


def _comparable(both: Pair, state: Mapping[str, np.ndarray], fed: Probe) -> dict[str, str]:
    """The layers that both models call equally often, with outputs that are the same but for their layout.

    A layer that one of the models calls on a reshaped input is right or wrong by what comes of it.
    """
    record = Recorder()
    copy = run_pytorch.promote(both.reference).eval()
    with torch.no_grad(), run_pytorch.tapped(copy, record, both.names.values()):
        run_pytorch.run(copy, fed, run_pytorch.inputs_of(fed))
    ours = {name: tuple(y.shape) for name, y in record.outputs.items()}
    net, record = both.functional(state, both.names), Recorder()
    inputs, keywords = run_flax.inputs_of(fed)
    jax.eval_shape(lambda p, s: net.forward(p, s, inputs, keywords, False, record)[0], net.params, net.stats)
    theirs = {name: tuple(y.shape) for name, y in record.outputs.items()}

    def fits(call: str) -> bool:
        if call not in ours or call not in theirs:
            return False
        a, b = ours[call], theirs[call]
        reshaped = np.prod(a) == np.prod(b) and not any(
            len(a) == len(b) and tuple(a[i] for i in axes(layout, len(a))) == b for layout in LAYOUTS
        )
        return not reshaped

    unfit = {layer_of(call) for call in {*ours, *theirs} if not fits(call)}
    return {own: name for own, name in both.names.items() if name not in unfit}

"""Working precision: what a right port's errors are, which mistakes they show, and that every setting is put back."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx
from jax.nn import relu as imported_by_name
from networks import quick_compilation
from small import OPTION_A_NET, reference, twin

import parity
import ports
from parity.commands import cli
from parity.diagnosis import forced_runs
from parity.numerics import bounds
from parity.numerics.quantities import QUANTITIES, Probe, Training
from parity.options import quiet
from parity.reports.report import Model
from parity.running import device, losses
from parity.running import linen as run_linen
from parity.running import nnx as run_nnx
from parity.running import pytorch as run_pytorch
from parity.running.subject import Candidate, Subject
from parity.running.tf32 import PARTS, products
from parity.verdict import precision
from ports import UserError
from ports.objective import CLASSIFICATION
from ports.resnet.spec import Stage

pytestmark = pytest.mark.usefixtures("quick")

# A right port stands at 6 at most in the networks that were measured, a layer in a narrower type at hundreds and more.
FEW, MANY = 16, 100


def measured(reference: torch.nn.Module, candidates: dict[str, Candidate], fed: Probe) -> Any:
    subject = Subject("net", reference, candidates, fed, Training(0, dict, None))
    return precision.measure(subject, precision.Policy((*precision.DTYPES,)), quiet)


def worst(model: Model, side: str, dtype: str = "float32") -> dict[str, float]:
    return {row.quantity: row.multiple for row in model.precision if (row.side, row.dtype) == (side, dtype)}


# --- right ports


TINY = dataclasses.replace(OPTION_A_NET, name="tiny", stages=(Stage(8, 1),))


@pytest.fixture(scope="module")
def report() -> parity.Report:
    with quick_compilation():
        return parity.check(TINY, steps=0, dtypes=("float32", "bfloat16"))


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", ["pytorch", "nnx", "linen"])
@pytest.mark.nightly
def test_right_side_stands_at_a_few_responses(report: parity.Report, side: str, dtype: str) -> None:
    assert report
    found = worst(report.models[0], side, dtype)
    assert len(found) == 6
    assert max(found.values()) < FEW, found
    assert max(found.values()) > 0.05, found


def test_errors_are_those_of_the_type(report: parity.Report) -> None:
    output = {(r.side, r.dtype): r.error for r in report.models[0].precision if r.quantity == "output.eval"}
    for (side, dtype), error in output.items():
        unit = {"float32": 2**-24, "bfloat16": 2**-9}[dtype]
        assert unit / 16 < error < 16 * unit, (side, dtype, error)


def test_flips_of_a_network_are_counted_and_shown(report: parity.Report) -> None:
    rows = report.models[0].precision
    assert {row.units for row in rows} == {2 * (16 * 13 * 8 * 3)}
    counted: dict[str, Any] = {row.dtype: row.flips for row in rows if row.side == "nnx"}
    assert "are on where float64's are off" in str(report)
    assert 0 <= counted["float32"] < counted["bfloat16"] < 100
    assert "ReLUs (" in str(report)
    assert "bfloat16 but for BatchNorm and the loss" in report.models[0].note


# --- layers in a narrower type than the network's: right in float64, seen in float32


class Torch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


class NNX(nnx.Module):
    def __init__(self, dtype: Any = None, rngs: Any = None) -> None:
        rngs = rngs or nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.bn = nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, dtype=dtype, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return imported_by_name(self.bn(self.conv(x)))


class Linen(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        x = nn.Conv(4, (3, 3), padding=1, dtype=self.dtype)(x)
        bn = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, use_fast_variance=False)
        return nn.relu(bn(x))


IMAGES = np.random.default_rng(0).standard_normal((3, 3, 6, 5)).astype(np.float32)


def linen(**options: Any) -> Any:
    module = Linen(**options)
    return module, module.init(jax.random.key(0), jnp.zeros((3, 6, 5, 3)))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("make", "narrow"),
    [(linen, False), (linen, True), (NNX, True)],
    ids=["linen", "linen, convolution in bfloat16", "nnx, BatchNorm in bfloat16"],
)
def test_narrow_layer_in_ones_own_model_is_seen(make: Callable[..., Any], narrow: bool) -> None:
    torch.manual_seed(0)
    net = Torch()
    port = parity.move(net, make(**({"dtype": jnp.bfloat16} if narrow else {})), IMAGES)
    report = parity.check(net, port, IMAGES, steps=0, accept=["bn-running-var"], dtypes=("float32",))
    assert report, str(report)
    found, ours = (worst(report.models[0], side) for side in ("linen" if isinstance(port, tuple) else "nnx", "pytorch"))
    assert max(ours.values()) < FEW
    assert (found["output.eval"] > MANY) is narrow, found
    assert (max(found.values()) < FEW) is not narrow, found


def test_narrow_layer_in_a_network_of_this_package_is_seen() -> None:
    net = reference(TINY)
    narrow = twin(net, "nnx")
    narrow.conv1.dtype = jnp.bfloat16
    report = parity.check(net, narrow, steps=0, dtypes=["float32"])
    assert report, str(report)
    assert worst(report.models[0], "nnx")["output.eval"] > MANY
    assert max(worst(report.models[0], "pytorch").values()) < FEW


# --- flips counted by hand


class Mlp(nnx.Module):
    """`relu` is called once, on three rows of four units."""

    def __init__(self, relu: Callable[[Any], Any]) -> None:
        self.up, self.relu = nnx.Linear(1, 4, rngs=nnx.Rngs(0)), relu

    def __call__(self, x: Any) -> Any:
        return self.relu(self.up(x))


RELUS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "nnx.relu": (nnx.relu, True),
    "imported by name": (imported_by_name, True),
    "one of two in a checkpoint": (lambda x: nnx.relu(jax.checkpoint(lambda x: nn.relu(x))(x)), False),
    "written by hand": (lambda x: jnp.maximum(x, 0), False),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize(("relu", "counted"), RELUS.values(), ids=RELUS.keys())
def test_flips_are_those_counted_by_hand(relu: Callable[[Any], Any], counted: bool) -> None:
    up = torch.nn.Linear(1, 4)
    # In bfloat16 1 + 2**-12 is 1: the first two units are on in float64 and zero there, the others far from the kink.
    weight, bias = [1 + 2**-12, 1 + 2**-12, 1.0, 1.0], [-1.0, -1.0, 1.0, -3.0]
    with torch.no_grad():
        up.weight.copy_(torch.tensor(weight)[:, None])
        up.bias.copy_(torch.tensor(bias))

    def build(dtype: str, state: Any) -> Any:
        net: Any = run_nnx.promote(Mlp(relu), dtype)
        net.up.kernel[...], net.up.bias[...] = state["0.weight"].T, state["0.bias"]
        return run_nnx.functional(net, {}, {"up.weight": "0.weight", "up.bias": "0.bias"})

    fed, torch_net = Probe((np.ones((3, 1)),), losses.projection(0)), torch.nn.Sequential(up, torch.nn.ReLU())
    rows = measured(run_pytorch.promote(torch_net), {"nnx": Candidate(partial(build, "float64", {}), build)}, fed)
    found = {(r.side, r.dtype): (r.flips, r.units) for r in rows}
    assert found["pytorch", "float32"] == (0, 12)
    assert found["pytorch", "bfloat16"] == (6, 12)
    assert found["nnx", "float32"] == ((0 if counted else None), 12)
    assert found["nnx", "bfloat16"] == ((6 if counted else None), 12)
    assert ("not counted" in str(parity.Report((Model("mlp", (), precision=rows),)))) is not counted


# --- the policy of bfloat16


def held(net: Any) -> dict[str, str]:
    """The types of the tensors, by PyTorch name."""
    return {name: array.dtype.name for name, array in ports.weights.read(net).items() if array.dtype.kind != "i"}


def promoted(port: str) -> Any:
    if port == "pytorch":
        return precision.cast(Torch(), "bfloat16")
    return (
        run_nnx.promote(NNX(), "bfloat16")
        if port == "nnx"
        else run_linen.promote(ports.create(TINY, "linen"), "bfloat16")
    )


@pytest.mark.parametrize("port", ["pytorch", "nnx", "linen"])
def test_batch_norm_stays_in_float32_and_all_else_is_bfloat16(port: str) -> None:
    types = held(promoted(port))
    norms = {name for name in types if "bn" in name.rpartition(".")[0].rpartition(".")[2]}
    assert {types[name] for name in norms} == {"float32"}
    assert {types[name] for name in types if name not in norms} == {"bfloat16"}


def test_loss_is_computed_in_float32() -> None:
    fed = precision.fed_in(Probe((np.ones((1, 2)),), losses.projection(0)), "bfloat16")
    assert fed.inputs[0].dtype == ml_dtypes.bfloat16
    assert fed.loss.torch(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert fed.loss.flax({"output": "same"})(jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.float32


# --- a side that does not run in a type


class NotInBfloat16(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'\nand more")
        return super().forward(input)


def test_side_that_does_not_run_in_a_type_says_so() -> None:
    net = run_pytorch.promote(NotInBfloat16(2, 3))
    rows = measured(net, {}, Probe((np.ones((2, 2)),), losses.projection(0)))
    assert [row.dtype for row in rows] == ["float32"] * 5 + ["bfloat16"]
    assert rows[-1].tensor == "(does not run: RuntimeError: not implemented for 'BFloat16')"
    entry = parity.Report((Model("linear", (), precision=rows),)).to_json()["models"][0]["precision"][-1]
    assert (entry["error"], entry["flips"]) == (None, None)


def test_model_with_tied_weights_runs() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).double()
    layers[1].weight = layers[0].weight
    rows = measured(layers, {}, Probe((np.ones((2, 3)),), losses.projection(0)))
    assert len(rows) == 10
    assert all(row.multiple < FEW for row in rows)


# --- one unit in the last place


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_one_ulp_moves_every_number_to_a_neighbour(dtype: Any) -> None:
    array = np.random.default_rng(0).standard_normal(200).astype(dtype)
    array[:2] = 0.0, -0.0
    moved = bounds.one_ulp(array, np.random.default_rng(1))
    assert moved.dtype == array.dtype
    ordered = array.view({2: np.int16, 4: np.int32, 8: np.int64}[array.itemsize])
    steps = moved.view(ordered.dtype) - ordered
    assert not steps[:2].any()
    assert set(np.unique(steps[2:])) == {-1, 1}


def test_several_units_are_moved_for_tf32() -> None:
    array = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    far = np.abs(bounds.one_ulp(array, np.random.default_rng(1), device.TF32_UNITS) - array) / np.spacing(np.abs(array))
    assert set(far) == {np.float32(2**13)}


# --- devices and policies


def settings() -> list[Any]:
    config: Any = jax.config
    return [
        *(setting.fp32_precision for setting in PARTS),
        config.jax_default_matmul_precision,
        config.jax_default_device,
        torch.get_default_device(),
        dict(os.environ),
    ]


@pytest.mark.parametrize(("tf32", "said"), [(True, ("tf32", "tensorfloat32")), (False, ("ieee", "highest"))])
def test_policy_is_one_for_both_frameworks_and_put_back_after_an_error(
    tf32: bool, said: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: torch.device("meta"))
    monkeypatch.setattr(device, "jax_gpu", lambda: jax.devices()[0])
    before = settings()
    during = []

    def failing() -> None:
        with device.using("gpu", tf32):
            during.extend(settings())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert set(during[:3]) == {said[0]}
    assert during[3] == said[1]
    assert during[5] == torch.device("meta")
    assert during[6] == {**before[6], **device.ENVIRONMENT}
    assert settings() == before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_both_of_pytorchs_interfaces_say_the_same(precision: str) -> None:
    """Inductor reads the old one, and PyTorch raises where the two disagree."""
    backends: Any = torch.backends

    def old() -> tuple[bool, bool, str]:
        return backends.cudnn.allow_tf32, backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()

    try:
        torch.set_float32_matmul_precision(precision)
        before = old(), [part.fp32_precision for part in PARTS]
        for tf32 in (True, False):
            with products(tf32):
                assert old() == (tf32, tf32, "high" if tf32 else "highest")
                assert {part.fp32_precision for part in PARTS} == {"tf32" if tf32 else "ieee"}
            assert (old(), [part.fp32_precision for part in PARTS]) == before
    finally:
        torch.set_float32_matmul_precision("highest")
        backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"


def test_a_caller_who_set_the_new_interface_alone_gets_it_back() -> None:
    backends: Any = torch.backends
    before = backends.cudnn.conv.fp32_precision
    try:
        backends.cudnn.conv.fp32_precision = "ieee"
        with products(True):
            assert {part.fp32_precision for part in PARTS} == {"tf32"}
        assert backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        backends.cudnn.conv.fp32_precision = before


def test_policy_stays_as_it_is_without_a_choice() -> None:
    before = settings()
    with device.using("cpu"):
        assert settings() == before


def test_all_of_pytorch_runs_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU: it refuses tensors of the CPU, and numpy cannot read it."""
    fetched = []

    def fetch(tensor: torch.Tensor) -> np.ndarray:
        fetched.append(tensor.device.type)
        return np.zeros(tuple(tensor.shape))

    monkeypatch.setattr(device, "torch_gpu", lambda: torch.device("meta"))
    monkeypatch.setattr(device, "jax_gpu", lambda: None)
    monkeypatch.setattr(device, "to_numpy", fetch)
    monkeypatch.setattr(forced_runs, "to_numpy", fetch)
    net = reference(OPTION_A_NET, fresh=True)
    loss = losses.of_family(CLASSIFICATION, np.array([1, 2]))
    with device.using("gpu"):
        fed = Probe((np.zeros((2, 3, 16, 13)),), loss)
        promoted = run_pytorch.promote(net)
        train = Training(1, lambda params: torch.optim.SGD(params.values(), lr=0.1, momentum=0.9), None)
        assert set(dict(run_pytorch.observe(promoted, fed, train))) == set(QUANTITIES)
        assert forced_runs.of_reference(promoted, fed, None, train=True).output_gradients
        assert run_pytorch.inputs_of(fed)[0].is_meta
    assert set(fetched) == {"meta"}


ON_THE_SECOND = """
import jax, torch, numpy as np, jax.numpy as jnp
from flax import nnx, linen as nn
from parity.numerics.quantities import QUANTITIES, Probe, Training
from parity.running import device
from parity.running import flax as run_flax, linen as run_linen, nnx as run_nnx
net, module = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nn.Dense(3)
variables = jax.device_put(module.init(jax.random.key(0), jnp.ones((1, 2))), jax.devices()[0])
nnx.update(net, jax.device_put(nnx.state(net), jax.devices()[0]))
device.torch_gpu, device.jax_gpu = lambda: torch.device("cpu"), lambda: jax.devices()[1]
with device.using("gpu"):
    inputs, keywords = run_flax.inputs_of(Probe((np.ones((1, 2)),), None))
    for port, made in ((run_nnx, net), (run_linen, (module, variables))):
        f = port.functional(port.promote(made))
        y = jax.jit(lambda p, s, x: f.forward(p, s, x, keywords, True, run_flax.Tap())[0])(f.params, f.stats, inputs)
        print({d.id for leaf in jax.tree.leaves((f.params, inputs, y)) for d in leaf.devices()})
"""


def test_all_of_jax_runs_on_the_gpu() -> None:
    """A second CPU device stands for a GPU; the models lie on the first."""
    variables = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run = subprocess.run(
        [sys.executable, "-c", ON_THE_SECOND], env=variables, capture_output=True, text=True, check=False
    )
    assert run.stdout.split("\n")[:2] == ["{1}", "{1}"], run.stderr


GPU = {"device": "gpu", "dtypes": ["float32"]}


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("options", "torch_gpu", "jax_gpu", "said"),
    [
        ({"device": "gpu", "dtypes": []}, None, None, "got gpu, expected an available one: PyTorch and JAX see none"),
        ({"device": "gpu", "dtypes": []}, "meta", None, "got gpu, expected an available one: JAX sees none"),
        ({**GPU, "tf32": True}, "meta", "cpu", "got a GPU without TF32"),
        ({"device": "cpu", "dtypes": ["float32"], "tf32": True}, "meta", "cpu", "got the device cpu, expected a GPU"),
        ({"device": "cpu", "dtypes": ["bfloat16"], "tf32": False}, None, None, "got no run in float32"),
        ({"device": "tpu", "dtypes": []}, None, None, "got 'tpu', expected cpu or gpu"),
        ({"device": "cpu", "dtypes": ["float32"], "tf32": "on"}, None, None, "expected True, False or None"),
    ],
)
def test_device_that_is_not_there(
    options: Any, torch_gpu: str | None, jax_gpu: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: torch_gpu and torch.device(torch_gpu))
    monkeypatch.setattr(device, "jax_gpu", lambda: jax_gpu and jax.devices(jax_gpu)[0])
    monkeypatch.setattr(device, "has_tf32", lambda: False)
    with pytest.raises(UserError, match=said):
        device.require(**{"tf32": None, **options})


# --- the command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--dtype float16", "got 'float16', expected float32 or bfloat16"),
        ("--dtype ,", "--dtype: got ',', expected float32 or bfloat16"),
        ("--dtype float32 --tf32 yes", "--tf32: got 'yes', expected on or off"),
        ("--dtype float32 --tf32 on", "expected a GPU"),
        ("--device gpu", "got gpu, expected an available one"),
    ],
)
def test_bad_input_is_one_line(arguments: str, said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "torch_gpu", lambda: None)
    monkeypatch.setattr(device, "jax_gpu", lambda: None)
    assert cli.main(["check", "cifar_resnet20", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


PAIR = """
import numpy as np, torch, parity
from flax import nnx
def pair():
    net, x = torch.nn.Linear(3, 2), np.random.default_rng(0).standard_normal((4, 3))
    return net, parity.move(net, nnx.Linear(3, 2, rngs=nnx.Rngs(0)), x), x
"""


def test_command_writes_and_prints_what_was_measured(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measured_pair.py").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    types = ["--dtype", "float32,bfloat16", "--dtype", "float32"]
    assert cli.main(["check", "measured_pair:pair", *types, "--steps", "0", "--json", "out.json"]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    rows = written["models"][0]["precision"]
    assert written["schema"] == 1
    assert {(row["side"], row["dtype"]) for row in rows} == {
        (side, dtype) for side in ("pytorch", "nnx") for dtype in ("float32", "bfloat16")
    }
    assert all(0 <= row["multiple"] < FEW for row in rows)
    assert "working precision" in capsys.readouterr().out

"""Faithful runs: random small networks, right in both frameworks, all of which must pass the check.

Half of them are networks of this package and models that people write; half are modules of random structure.

A false alarm here would mean that the bounds are too narrow. `REPEATS` runs in a row share a network and its shapes,
with other weights, types and inputs, so that each program is compiled once and then found in a folder of its own.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import parity
import ports
from parity.running import linen as run_linen
from parity.running import nnx as run_nnx
from parity.running import probes as probe
from parity.subjects import randomise
from ports.optimizers import VARIANTS
from ports.resnet.spec import SHORTCUTS, Block, ResNetSpec, Stage, Stem

from . import examples
from .random_modules import programs

REPEATS = 8
OPTIMIZERS = tuple(VARIANTS)
DTYPES = ("float32", "bfloat16", "float64")
BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Result:
    """One faithful run.

    Attributes:
        multiple: the worst tensor's distance, in rounding responses; `at` its port and quantity.
        said: what the check says where it does not pass.
    """

    seed: int
    network: str
    dtype: str
    ok: bool
    multiple: float
    at: str
    said: str = ""


def network(seed: int) -> tuple[ResNetSpec, dict[str, Any]]:
    """A random network of this package, and the batch and image size of its check."""
    rng = random.Random(seed)
    preactivation = rng.random() < 0.3
    bottleneck = rng.random() < 0.5
    grouped = bottleneck and rng.random() < 0.3
    block = Block(
        bottleneck=bottleneck,
        expansion=rng.choice([2, 4]) if bottleneck else 1,
        stride_at=rng.randrange(3 if bottleneck else 2),
        preactivation=preactivation,
        shortcut=rng.choice(SHORTCUTS),
        shortcut_norm=rng.random() < 0.7,
        residual=rng.random() < 0.85,
        groups=rng.choice([2, 4]) if grouped else 1,
        base_width=64,
    )
    stem = rng.choice(
        [
            Stem(((8, 3, 1),)),
            Stem(((8, 7, 2),), max_pool=True),
            Stem(((4, 3, 2), (8, 3, 1))),
        ]
    )
    stages = [Stage(8, rng.choice([1, 1, 2]))]
    for i in range(rng.choice([1, 1, 2])):
        stages.append(Stage(16 << i, 1, stride=rng.choice([1, 2, 2])))
    spec = ResNetSpec(
        f"random_{seed}",
        stem,
        tuple(stages),
        block,
        num_classes=rng.randint(2, 12),
        in_channels=rng.choice([1, 3, 3, 3]),
        input_size=rng.randint(12, 19),
        features_only=rng.random() < 0.2,
    )
    size = (spec.input_size, rng.randint(12, 21))
    return spec, {"batch": rng.randint(2, 4), "image_size": size, "seed": seed}


def resnet(group: int, seed: int, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A network of this package in PyTorch and in one of the ports, with random BatchNorm parameters."""
    spec, options = network(group)
    exact = ports.create(spec, "pytorch", seed=seed, dtype="float64")
    fed = probe.of_spec(spec, batch=options["batch"], size=options["image_size"], seed=group)
    port = ("nnx", "linen")[seed // REPEATS % 2 ^ seed % 2]
    with jax.enable_x64(True):
        randomise(exact, fed, seed)
        reference = ports.create(spec, "pytorch", seed=None, dtype=dtype)
        types = {name: array.dtype for name, array in ports.weights.read(reference).items()}
        state = {name: array.astype(types[name]) for name, array in ports.weights.read(exact).items()}
        ports.weights.write(reference, state)
        net = ports.create(spec, port, seed=None, dtype=dtype)
        variables = ports.weights.write(net, state)
    return (reference, net if variables is None else (net[0], variables)), options


def _typed(flax: Any, dtype: str) -> Any:
    """The Flax model in float64, where the weights are."""
    if dtype != "float64":
        return flax
    return run_nnx.promote(flax) if isinstance(flax, nnx.Module) else run_linen.promote(flax)


def _moved(model: torch.nn.Module, flax: Any, dtype: str, *inputs: Any) -> tuple[Any, ...]:
    with jax.enable_x64(True):
        model = model.to(getattr(torch, dtype))
        return model, parity.move(model, _typed(flax, dtype), *inputs), *inputs


def _initial(module: Any, *inputs: Any) -> Any:
    return module, module.init(jax.random.key(0), *inputs)


def unet(group: int, seed: int, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rng, images = random.Random(group), np.random.default_rng(seed)
    width, height, batch = rng.choice([2, 3, 4]), rng.randint(9, 19), rng.randint(2, 3)
    x = images.standard_normal((batch, 3, height, rng.randint(9, 19)))
    flax = _initial(examples.LinenUNet(width=width), jnp.zeros(x.transpose(0, 2, 3, 1).shape))
    return _moved(examples.UNet(width=width), flax, dtype, x), {"accept": ["bn-running-var"]}


def encoder(group: int, seed: int, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rng, draw = random.Random(group), np.random.default_rng(seed)
    heads = rng.choice([1, 2, 3])
    sizes: dict[str, Any] = {
        "vocabulary": 11,
        "length": rng.randint(4, 9),
        "width": 4 * heads,
        "heads": heads,
        "depth": 2,
    }
    tokens = draw.integers(0, 11, (rng.randint(2, 4), sizes["length"]))
    padding = np.arange(sizes["length"]) >= draw.integers(2, sizes["length"] + 1, len(tokens))[:, None]
    flax = examples.NNXEncoder(**sizes, rngs=nnx.Rngs(0))
    return _moved(examples.Encoder(**sizes), flax, dtype, tokens, padding), {}


def lstm(group: int, seed: int, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rng, series = random.Random(group), np.random.default_rng(seed)
    inputs, width, classes = rng.randint(3, 6), rng.randint(3, 7), rng.randint(2, 5)
    x = series.standard_normal((rng.randint(2, 4), rng.randint(5, 9), inputs))
    model = examples.ResidualLSTM(inputs, width, classes)
    if rng.random() < 0.5:
        return _moved(model, examples.NNXResidualLSTM(inputs, width, classes, rngs=nnx.Rngs(0)), dtype, x), {}
    flax = _initial(examples.LinenResidualLSTM(width, classes), jnp.array(x, jnp.float32))
    return _moved(model, flax, dtype, x), {}


def generated(group: int, seed: int, dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A module of random structure."""
    program = programs.program(group)
    x = programs.inputs_of(program, seed)
    model = programs.reference_of(program)
    normed = any(isinstance(module, BATCH_NORM) for module in model.modules())
    options = {"accept": ["bn-running-var"]} if normed else {}
    return _moved(model, programs.port_of(program, x), dtype, x), options


# Of twenty networks, how many are of which kind.
KINDS = (*(resnet,) * 7, unet, encoder, lstm, *(generated,) * 10)


def run(seed: int) -> Result:
    """One faithful run."""
    group = seed // REPEATS
    make, dtype = KINDS[group % len(KINDS)], DTYPES[seed % len(DTYPES)]
    torch.manual_seed(seed)
    try:
        pair, options = make(group, seed, dtype)
        options = {"seed": group, "steps": random.Random(group).choice([1, 3, 3]), **options}
        options["optimizer"] = OPTIMIZERS[group % len(OPTIMIZERS)]
        settings = {name: value for name, value in options.items() if name not in ("batch", "image_size")}
        shape = {name: options[name] for name in ("batch", "image_size") if name in options}
        report = parity.check(*pair, **settings, **shape)
    except Exception as error:  # a faithful port must pass, whatever comes between
        return Result(seed, make.__name__, dtype, False, 0.0, "", f"{type(error).__name__}: {error}")
    model = report.models[0]
    worst = max((far, f"{port} {quantity}") for port, q in model.multiple.items() for quantity, far in q.items())
    said = "" if model.ok else f"{model.undecided or ''} {model.first_divergence or ''} {model.findings}".strip()
    return Result(seed, make.__name__, dtype, model.ok, round(float(worst[0]), 2), worst[1], said)


@contextmanager
def compiled_once() -> Iterator[None]:
    """Programs are compiled without XLA's optimisations, once, and kept in a folder for the time of the runs."""
    settings: dict[str, Any] = {
        "jax_disable_most_optimizations": True,
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what these networks compute is over before a second thread has begun
    with tempfile.TemporaryDirectory() as folder:
        settings["jax_compilation_cache_dir"] = folder
        before = {n: getattr(jax.config, n) if hasattr(jax.config, n) else jax.config.read(n) for n in settings}
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def runs(count: int, first: int = 0, progress: Callable[[Result], None] = lambda _: None) -> list[Result]:
    """So many faithful runs, by their seeds."""
    results = []
    with compiled_once():
        for seed in range(first, first + count):
            results.append(run(seed))
            progress(results[-1])
            if seed % REPEATS == REPEATS - 1:
                jax.clear_caches()
    return results

"""The cost of a check, as a multiple of the plain passes that it needs, and its memory; measured in one run.

    python -m benchmarks.studies.check_cost resnet50 --json check-cost.json

Plain passes are those that a check cannot avoid, run in the usual way, without recording layers: the reference and its
perturbed copies in PyTorch, and every port under `jax.jit`, each with one forward pass in eval mode, and the forward
and backward passes of the training. Compiling is not a pass: its time is a separate figure.

The check keeps its compiled programs (`parity.running.compiled`). The first check of a network begins with an empty
folder, and the second one takes the programs from it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import torch
from jaxtyping import PyTree

import parity
import ports
from benchmarks.machine.process_memory import Peak
from parity import api
from parity.numerics.bounds import DRAWS
from parity.numerics.quantities import Probe
from parity.reports import terminal
from parity.reports.report import Report
from parity.running import flax as run_flax
from parity.running import probes as probe
from parity.running import pytorch as run_pytorch
from parity.running.flax_ports import FLAX_PORTS
from parity.running.taps import Tap
from ports import families
from ports.family import Description

STEPS, BATCH, PORTS = 3, 2, ("nnx", "linen")


def torch_passes(net: torch.nn.Module, fed: Probe) -> float:
    """Seconds of one run in PyTorch: a pass in eval mode, and the training's."""
    begin = time.perf_counter()
    with torch.no_grad(), run_pytorch.tapped(net.eval(), Tap(), ()):
        run_pytorch.run(net, fed, run_pytorch.inputs_of(fed))
    net.train()
    for _ in range(STEPS):
        values = run_pytorch.run(net, fed, run_pytorch.inputs_of(fed, grad=True))
        fed.loss.torch(values).backward()
    return time.perf_counter() - begin


def flax_passes(net: run_flax.Functional, fed: Probe) -> tuple[float, float]:
    """Seconds of one run of a port, and of compiling it."""
    inputs, keywords = run_flax.inputs_of(fed)
    loss = fed.loss.flax({"output": "same"})

    def evaluate(params: PyTree, stats: PyTree) -> PyTree:
        return net.forward(params, stats, inputs, keywords, False, Tap())[0]

    def objective(params: PyTree, x: PyTree, stats: PyTree) -> tuple[jax.Array, PyTree]:
        values, stats = net.forward(params, stats, x, keywords, True, Tap())
        return loss(values), stats

    begin = time.perf_counter()
    forward = jax.jit(evaluate).lower(net.params, net.stats).compile()
    gradient = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    step = gradient.lower(net.params, inputs, net.stats).compile()
    compiled = time.perf_counter()
    jax.block_until_ready(forward(net.params, net.stats))
    stats = net.stats
    for _ in range(STEPS):
        (_, stats), grads = step(net.params, inputs, stats)
        jax.block_until_ready(grads)
    return time.perf_counter() - compiled, compiled - begin


def checked(name: str) -> tuple[Report, float]:
    """Check a network, with nothing compiled in this process: the report, and the seconds."""
    jax.clear_caches()
    begin = time.perf_counter()
    report = parity.check_network(name, ports=PORTS, steps=STEPS, batch=BATCH)
    return report, time.perf_counter() - begin


def measure(name: str) -> dict[str, Any]:
    """One network: the check, the same check again, and the passes."""
    spec = families.get(name)
    with tempfile.TemporaryDirectory() as empty, Peak() as peak:
        os.environ["PARITY_CACHE"] = empty
        (report, check), (_, again) = checked(name), checked(name)
        jax.clear_caches()
    fed = probe.of_spec(spec, batch=BATCH, size=probe.default_size(spec), seed=0)
    net = ports.create(spec, "pytorch", seed=0, dtype="float64")
    passes, compiling = torch_passes(net, fed) * (1 + DRAWS), 0.0
    with jax.enable_x64(True):
        for port in PORTS:
            built = ports.create(spec, port, seed=None, dtype="float64")
            variables = ports.weights.write(built, ports.weights.read(net))
            functional = FLAX_PORTS[port].functional(built if variables is None else (built[0], variables))
            seconds, compile_seconds = flax_passes(functional, fed)
            passes, compiling = passes + seconds, compiling + compile_seconds
            del built, variables, functional
    activations = _activations(spec, fed)
    return {
        "model": name,
        "ok": report.ok,
        "check_seconds": round(check, 2),
        "again_seconds": round(again, 2),
        "passes_seconds": round(passes, 2),
        "compile_seconds": round(compiling, 2),
        "ratio": round(check / passes, 2),
        "ratio_again": round(again / passes, 2),
        "ratio_without_compiling": round((check - compiling) / passes, 2),
        "peak_bytes": peak.bytes,
        "activation_bytes": activations,
    }


def _activations(spec: Description, fed: Probe) -> int:
    """Bytes of the outputs of all recorded layers of one network in one mode, in float64."""
    net = ports.create(spec, "pytorch", seed=None, dtype="float64").eval()
    record = run_pytorch.Outputs(copies=False)
    with torch.no_grad(), run_pytorch.tapped(net, record):
        run_pytorch.run(net, fed, run_pytorch.inputs_of(fed))
    return sum(t.numel() * t.element_size() for t in record.outputs.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    terminal.writable("--json", arguments.json)
    results = [measure(name) for name in arguments.networks]
    for result in results:
        print(json.dumps(result))
    if arguments.json:
        whole = {"schema": 1, "results": results, "environment": api.environment()}
        terminal.write("--json", arguments.json, json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.script("benchmarks.studies.check_cost", main))

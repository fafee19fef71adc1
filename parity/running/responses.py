"""Measures the rounding response: runs a side as it is, and again with inputs and weights moved."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.numerics import bounds
from parity.numerics.bounds import DRAWS, Responses
from parity.numerics.layouts import mapped
from parity.running import memory, on_disk
from parity.running import pytorch as run_pytorch
from parity.running.flax import PortRuns
from parity.running.subject import Progress, Subject
from ports import weights


def responses_of(subject: Subject, progress: Progress) -> Responses:
    """Run the reference once as it is and `DRAWS` times perturbed."""
    progress("reference in PyTorch")
    reference, fed, how = subject.reference, subject.probe, subject.training
    state = weights.read(reference)
    parameters = {name: state[name] for name in run_pytorch.updated(reference, fed)}
    exact = on_disk.spilled(run_pytorch.observe(reference, fed, how, subject.names))
    responses = Responses(exact, parameters, fed.idle, bounds.unsteady(exact))
    for draw in range(DRAWS):
        progress(f"rounding response {draw + 1} of {DRAWS}")
        moved, moved_probe = bounds.perturbed(state, fed, subject.seed * DRAWS + draw)
        moved |= {name: moved[first] for name, first in run_pytorch.tied(reference).items()}
        copy = run_pytorch.promote(reference)
        weights.write(copy, moved)
        responses.add(run_pytorch.observe(copy, moved_probe, how, subject.names))
        memory.release()
    return responses


def of_port(runs: PortRuns, responses: Responses, subject: Subject) -> Responses:
    """Run a port once as it is and `DRAWS` times perturbed: its own rounding response, around its own results.

    Args:
        responses: of the reference.
    """
    own = Responses(on_disk.spilled(runs.observe()), responses.parameters, responses.idle, responses.skipped)
    for draw in range(DRAWS):
        rng = np.random.default_rng([subject.seed * DRAWS + draw, 7])

        def moved(leaf: jax.Array, rng: np.random.Generator = rng) -> jax.Array:
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            return jax.device_put(bounds.one_ulp(np.asarray(leaf), rng), leaf.sharding)

        net = replace(runs.net, params=jax.tree.map(moved, runs.net.params), stats=jax.tree.map(moved, runs.net.stats))
        inputs = mapped(subject.probe.inputs, lambda _, array, rng=rng: bounds.one_ulp(array, rng))
        own.add(runs.observe(net, replace(subject.probe, inputs=inputs)))
        memory.release()
    return own


def of_tables(subject: Subject, responses: Responses) -> Responses:
    """Run the reference `DRAWS` times with the tables moved that it holds in float32, by one unit in the last place.

    Args:
        responses: of the reference.
    """
    own = Responses(responses.reference, responses.parameters, responses.idle, responses.skipped)
    for draw in range(DRAWS):
        rng = np.random.default_rng([subject.seed * DRAWS + draw, 8])
        copy = run_pytorch.promote(subject.reference)
        for name, buffer in copy.named_buffers():
            if name in subject.tables:
                moved = bounds.one_ulp(buffer.numpy().astype(np.float32), rng)
                buffer.copy_(torch.from_numpy(np.asarray(moved, np.float64)))
        own.add(run_pytorch.observe(copy, subject.probe, subject.training, subject.names))
        memory.release()
    return own

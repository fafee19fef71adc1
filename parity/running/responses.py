"""Measures the rounding response: the reference is run as it is, and again with inputs and weights moved."""

from __future__ import annotations

from parity.numerics import bounds
from parity.numerics.bounds import DRAWS, Responses
from parity.running import memory, on_disk
from parity.running import pytorch as run_pytorch
from parity.running.subject import Progress, Subject
from ports import weights


def responses_of(subject: Subject, progress: Progress) -> Responses:
    """Run the reference once as it is and `DRAWS` times perturbed."""
    progress("reference in PyTorch")
    reference, fed, how = subject.reference, subject.probe, subject.training
    state = weights.read(reference)
    parameters = {name: state[name] for name in run_pytorch.updated(reference, fed)}
    exact = on_disk.spilled(run_pytorch.observe(reference, fed, how, subject.names))
    responses = Responses(exact, parameters, fed.idle)
    for draw in range(DRAWS):
        progress(f"rounding response {draw + 1} of {DRAWS}")
        moved, moved_probe = bounds.perturbed(state, fed, subject.seed * DRAWS + draw)
        moved |= {name: moved[first] for name, first in run_pytorch.tied(reference).items()}
        copy = run_pytorch.promote(reference)
        weights.write(copy, moved)
        responses.add(run_pytorch.observe(copy, moved_probe, how, subject.names))
        memory.release()
    return responses

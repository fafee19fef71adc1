"""A process that trains one network of the study in one framework: `python -m benchmarks.depth.worker JOB.json`.

It takes the first steps in float64 (in PyTorch also from weights moved by one unit in the last place), and then all
steps in float32. A separate process leaves memory and threads to the other framework.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

import ports
from benchmarks.depth.images import LabelledImages, batches, load
from benchmarks.depth.plan import NETWORKS, DepthPlan

TRAINERS = {"pytorch": "benchmarks.depth.pytorch:TorchTrainer", "nnx": "benchmarks.depth.nnx:NnxTrainer"}
DRAWS = 3  # of moved weights
UNIT = 2.0**-52
TEST_BATCH = 250
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class DepthJob:
    """The work of a process, which gets it as a JSON argument."""

    label: str
    framework: str
    weights: str
    data: str
    out: str
    device: str
    plan: dict[str, Any]

    def __post_init__(self) -> None:
        assert self.framework in TRAINERS, self.framework


def trainer_class(framework: str) -> Callable[..., Trainer]:
    module, _, name = TRAINERS[framework].partition(":")
    return getattr(importlib.import_module(module), name)


def moved(weights: Mapping[str, np.ndarray], draw: int) -> dict[str, np.ndarray]:
    """Return the parameters moved by up to a unit in the last place of float64; draw 0 are the weights themselves."""
    rng = np.random.default_rng(draw)
    found = {}
    for name, array in weights.items():
        exact = array if name.endswith(STATISTICS) else array.astype(np.float64)
        moves = draw and not name.endswith(STATISTICS)
        found[name] = exact * (1 + UNIT * rng.uniform(-1, 1, exact.shape)) if moves else exact
    return found


@runtime_checkable
class Trainer(Protocol):
    """A network with its optimizer, as `benchmarks.depth.pytorch` and `benchmarks.depth.nnx` have it."""

    def step(self, images: np.ndarray, labels: np.ndarray) -> tuple[float, int]: ...

    def gradient_norms(self) -> dict[str, float]: ...

    def wrong(self, images: np.ndarray, labels: np.ndarray) -> int: ...


class JobRun:
    """One network in one framework."""

    def __init__(self, job: DepthJob) -> None:
        self.job, self.plan, self.spec = job, DepthPlan(**job.plan), NETWORKS[job.label].spec
        self.weights = ports.weights.load(job.weights)
        self.layers = [name for name, array in self.weights.items() if array.ndim > 1]
        self.train: LabelledImages = load(Path(job.data), "train", self.plan.size)
        self.test: LabelledImages = load(Path(job.data), "test", self.plan.size)

    def trainer(self, weights: Mapping[str, np.ndarray], dtype: str) -> Trainer:
        found = trainer_class(self.job.framework)
        return found(self.spec, weights, self.plan, dtype, self.job.device)

    def norms(self, trainer: Trainer) -> list[float]:
        """Return the norm of each layer's gradient, in the order of the layers."""
        found = trainer.gradient_norms()
        return [found[name] for name in self.layers]

    def exact(self, draw: int) -> dict[str, Any]:
        """Take the first steps in float64; return the loss and the gradient's norms of each."""
        trainer, plan = self.trainer(moved(self.weights, draw), "float64"), self.plan
        losses, norms = [], []
        for taken in batches(len(self.train), plan.batch, plan.exact_steps, plan.seed):
            loss, _ = trainer.step(self.train.images[taken], self.train.labels[taken])
            losses.append(loss)
            norms.append(self.norms(trainer))
        return {"loss": losses, "gradient": norms}

    def curves(self, tell: Callable[[int], object]) -> dict[str, Any]:
        """Take all steps in float32; return the errors and norms on the way."""
        plan, trainer = self.plan, self.trainer(self.weights, "float32")
        images = self.train.images.astype(np.float32)
        losses, errors, at, norms, tested = [], [], [], [], []
        for step, taken in enumerate(batches(len(self.train), plan.batch, plan.steps, plan.seed)):
            loss, wrong = trainer.step(images[taken], self.train.labels[taken])
            losses.append(loss)
            errors.append(wrong / plan.batch)
            if step % plan.test_every == 0 or step == plan.steps - 1:
                at.append(step)
                norms.append(self.norms(trainer))
                tested.append(self.test_error(trainer))
                tell(step)
        return {"loss": losses, "train_error": errors, "at": at, "gradient": norms, "test_error": tested}

    def test_error(self, trainer: Trainer) -> float:
        """Return the fraction of the test images that is classified wrong, over a whole number of batches."""
        count = min(self.plan.test_images, len(self.test))
        count = count // TEST_BATCH * TEST_BATCH or count
        images, labels = self.test.images[:count].astype(np.float32), self.test.labels[:count]
        cuts = [slice(i, i + TEST_BATCH) for i in range(0, count, TEST_BATCH)]
        return sum(trainer.wrong(images[cut], labels[cut]) for cut in cuts) / count

    def run(self) -> dict[str, Any]:
        draws = range(1 + DRAWS if self.job.framework == "pytorch" else 1)
        exact = [self.exact(draw) for draw in draws]

        def tell(step: int) -> None:
            print(f"{self.job.label} {self.job.framework}: step {step + 1} of {self.plan.steps}", flush=True)

        return {"layers": self.layers, "exact": exact[0], "moved": exact[1:], "curves": self.curves(tell)}


def main(file: str) -> None:
    job = DepthJob(**json.loads(Path(file).read_text()))
    found = JobRun(job).run()
    Path(job.out).write_text(json.dumps({"job": asdict(job), **found}))


if __name__ == "__main__":
    main(sys.argv[1])

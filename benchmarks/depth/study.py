"""Runs the study of depth and judges it: a network whose first steps differ between the frameworks gets no curve."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ports
from benchmarks.depth.images import load
from benchmarks.depth.plan import FRAMEWORKS, NETWORKS, DepthNetwork, DepthPlan
from benchmarks.depth.worker import UNIT, DepthJob
from benchmarks.machine import description
from benchmarks.machine.checkout import ROOT
from benchmarks.measure.process import environment
from benchmarks.reporting import results
from parity.numerics.bounds import MULTIPLE
from parity.reports import terminal
from ports.errors import UserError

SCHEMA, KIND = 1, "depth"
LOOK = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Agreement:
    """The distance between the frameworks in the first steps, in float64.

    Attributes:
        distance: the largest difference of a loss or of a gradient's norm, relative to it.
        bound: the largest distance that is allowed: a multiple of the change by one unit in the last place of the
            weights.
        where: the quantity and the step that are worst compared with the bound.
    """

    distance: float
    bound: float
    where: str

    @property
    def ok(self) -> bool:
        return self.distance <= self.bound


def agreement(reference: Mapping[str, Any], moved: Sequence[Mapping[str, Any]], port: Mapping[str, Any]) -> Agreement:
    """Judge the first steps of a port.

    Args:
        reference: the loss and the gradients' norms of every step in PyTorch.
        moved: the same, from weights moved by one unit in the last place.
        port: the same in Flax.
    """
    rows = []
    for step in range(len(reference["loss"])):
        for quantity in ("loss", "gradient"):
            distance = _apart(reference[quantity][step], port[quantity][step])
            response = max(_apart(reference[quantity][step], one[quantity][step]) for one in moved)
            rows.append(Agreement(distance, MULTIPLE * max(response, UNIT), f"{quantity}, step {step + 1}"))
    return max(rows, key=lambda row: math.inf if math.isnan(row.distance) else row.distance / row.bound)


def _apart(a: float | Sequence[float], b: float | Sequence[float]) -> float:
    """Return the distance of b from a, relative to the length of a."""
    one, other = (list(v) if isinstance(v, Sequence) else [v] for v in (a, b))
    return math.dist(one, other) / math.hypot(*one) if math.hypot(*one) else math.inf


def chosen(labels: Sequence[str]) -> list[DepthNetwork]:
    """Return the networks of these labels; all of them where none are given.

    Raises:
        UserError: there is no such network in the study.
    """
    if unknown := [label for label in labels if label not in NETWORKS]:
        raise UserError(f"--networks: got {unknown[0]!r}, expected some of {', '.join(NETWORKS)}")
    return [NETWORKS[label] for label in labels or NETWORKS]


@dataclass(frozen=True)
class Study:
    """What to train, where, and how many processes work at a time."""

    networks: Sequence[DepthNetwork]
    plan: DepthPlan
    data: Path
    device: str
    processes: int

    def run(
        self, tell: Callable[[str], object], keep: Callable[[Mapping[str, Any]], object] = lambda _: None
    ) -> dict[str, Any]:
        """Train every network in both frameworks; return the results.

        Args:
            tell: gets a line whenever a process has ended.
            keep: gets the results so far whenever a network is trained in both frameworks.

        Raises:
            UserError: the images cannot be read, or a process ended without a result.
        """
        counts = {split: len(load(self.data, split, self.plan.size)) for split in ("train", "test")}
        if self.plan.batch > counts["train"]:
            raise UserError(f"--batch: got {self.plan.batch}, expected at most {counts['train']}, the number of images")
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": KIND,
            "machine": description.described(),
            "device": self.device,
            "plan": asdict(self.plan),
            "images": counts,
        }
        trained: dict[str, dict[str, Any]] = {network.label: {} for network in self.networks}
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
            jobs = [job for network in self.networks for job in self._jobs(network, Path(folder))]
            for job in self._ended(jobs, Path(folder), tell):
                trained[job.label][job.framework] = json.loads(Path(job.out).read_text())
                both = [network for network in self.networks if len(trained[network.label]) == len(FRAMEWORKS)]
                found["networks"] = [network_row(network, trained[network.label]) for network in both]
                if len(trained[job.label]) == len(FRAMEWORKS):
                    keep(found)
        return found

    def _jobs(self, network: DepthNetwork, folder: Path) -> list[DepthJob]:
        weights = folder / f"{network.label}.safetensors"
        net = ports.create(network.spec, "pytorch", seed=self.plan.seed)
        ports.weights.save(weights, ports.weights.read(net))
        data, plan = str(self.data.resolve()), asdict(self.plan)
        return [
            DepthJob(network.label, f, str(weights), data, str(folder / f"{network.label}-{f}.json"), self.device, plan)
            for f in FRAMEWORKS
        ]

    def _ended(self, jobs: Sequence[DepthJob], folder: Path, tell: Callable[[str], object]) -> Iterator[DepthJob]:
        """Run the jobs, the longest first, up to `processes` at a time; yield each when it has ended."""
        waiting = sorted(jobs, key=lambda job: -NETWORKS[job.label].spec.number_of_blocks)
        variables, total = self._variables(folder), len(jobs)
        running: dict[subprocess.Popen[bytes], DepthJob] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.processes:
                    job = waiting.pop(0)
                    running[_start(job, folder, variables)] = job
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    if process.returncode:
                        raise UserError(_failure(job, folder, process.returncode))
                    tell(f"{job.label} in {job.framework} is done, {total - len(waiting) - len(running)} of {total}")
                    yield job
                time.sleep(LOOK)
        finally:
            for process in running:
                process.kill()
                process.wait()

    def _variables(self, folder: Path) -> dict[str, str]:
        """Return the environment of a process: if several work at a time on a CPU, each has one thread."""
        if self.device == "gpu" or self.processes == 1:
            return environment(folder, self.device)
        single = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        return environment(folder, self.device, single)


def _start(job: DepthJob, folder: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    file = folder / f"{job.label}-{job.framework}.job"
    file.write_text(json.dumps(asdict(job)))
    with _log(job, folder).open("wb") as log:
        command = [sys.executable, "-m", "benchmarks.depth.worker", str(file)]
        return subprocess.Popen(command, stdout=log, stderr=log, env={**variables}, cwd=ROOT)


def _log(job: DepthJob, folder: Path) -> Path:
    return folder / f"{job.label}-{job.framework}.log"


def _failure(job: DepthJob, folder: Path, code: int) -> str:
    lines = [line for line in _log(job, folder).read_text(errors="replace").splitlines() if line.strip()]
    return f"{job.label} in {job.framework}: its process ended with {code}: {lines[-1] if lines else 'it said nothing'}"


def network_row(network: DepthNetwork, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a network's results: its curves only if the frameworks agree in the first steps."""
    reference = found["pytorch"]
    judged = agreement(reference["exact"], reference["moved"], found["nnx"]["exact"])
    return {
        "label": network.label,
        "group": network.group,
        "number": network.number,
        "network": network.network,
        "changes": {**network.changes},
        "layers": reference["layers"],
        "agreement": {**asdict(judged), "ok": judged.ok},
        "exact": {framework: one["exact"] for framework, one in found.items()},
        "curves": {framework: one["curves"] for framework, one in found.items()} if judged.ok else {},
    }


def save(found: Mapping[str, Any], path: Path) -> None:
    """Write a file that appears whole or not at all."""
    terminal.write("--out", path, json.dumps(found) + "\n")


def load_results(path: Path) -> dict[str, Any]:
    """Read the results of a study.

    Raises:
        UserError: no such file, another kind of file, or another schema.
    """
    return results.read(path, KIND, SCHEMA, "python -m benchmarks depth --out")

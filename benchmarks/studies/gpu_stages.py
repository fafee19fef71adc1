"""The measurements on a GPU in stages, the most important figures first; each stage is complete in itself.

To add something, add a `Group` to a stage, or a stage. A rehearsal takes the same stages on a CPU, with small networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.settings import Setting
from ports import families

SECONDS = 230.0  # seconds of a stage; with starting and reporting it stays below four minutes


@dataclass(frozen=True)
class Group:
    """Subjects, timed in turn in each of some settings; a subject is left out of a setting that it does not suit."""

    networks: tuple[str, ...]
    modes: tuple[str, ...]
    batches: tuple[int, ...]
    subjects: tuple[str, ...]
    precision: str = "bfloat16"
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class StageCheck:
    """One call of `parity check`; `name` is part of its file's name."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class GpuStage:
    """A stage of `make gpu`.

    Attributes:
        about: what it answers, for readers of the list.
        groups: what it times, in this order.
        checks: what it checks, side by side.
        ahead: subjects of later stages that it compiles during its checks, because they take longer than a stage:
            (stage, subject).
        starts: how often each process is started, if there is time.
        seconds: of the whole stage.
        build: seconds after which a program that still compiles is stopped.
    """

    about: str
    groups: tuple[Group, ...] = ()
    checks: tuple[StageCheck, ...] = ()
    ahead: tuple[tuple[str, str], ...] = ()
    starts: int = 5
    seconds: float = SECONDS
    build: float = 150.0


BOTH = ("inference", "training")
EAGER, COMPILED = "pytorch-channels-last", "pytorch-compile"
AUTOTUNED = "pytorch-max-autotune"
# The slowest to compile come first.
BASE = (COMPILED, "nnx", "nnx-folded", EAGER)
THREE = (COMPILED, "nnx", EAGER)
PEERS = ("pytorch-cuda-graphs", "torchvision", "timm")
INFERRED = (AUTOTUNED, *PEERS, "pytorch-folded", "nnx-jit", "nnx-export", "linen-folded", EAGER)
TRAINED = (AUTOTUNED, *PEERS, "nnx-jit", "linen", EAGER)
FLAGS = ("nnx", *(name for name, row in SUBJECTS.items() if row.swept and "gpu" in row.devices))
ON_GPU = ("resnet50", "--device", "gpu")

STAGES = {
    "a": GpuStage("ResNet-50 in bfloat16, batch 256: PyTorch and NNX", (Group(("resnet50",), BOTH, (256,), BASE),)),
    "b": GpuStage(
        "the check on the GPU: float64, and float32 with TF32 off and on",
        checks=(
            StageCheck("float64-nnx", (*ON_GPU, "--ports", "nnx")),
            StageCheck("float64-linen", (*ON_GPU, "--ports", "linen")),
            StageCheck("float32", (*ON_GPU, "--ports", "nnx", "--dtype", "float32", "--tf32", "off")),
            StageCheck("tf32", (*ON_GPU, "--ports", "nnx", "--dtype", "float32", "--tf32", "on")),
            StageCheck("small", ("cifar_resnet20", "--device", "gpu")),
        ),
        ahead=(("c", AUTOTUNED),),
    ),
    "c": GpuStage(
        "the other subjects, batch 32 and 1, and TF32",
        (
            Group(("resnet50",), ("inference",), (256,), INFERRED),
            Group(("resnet50",), ("training",), (256,), TRAINED),
            Group(("resnet50",), ("inference",), (1,), (*THREE, "pytorch-cuda-graphs")),
            Group(("resnet50",), BOTH, (32,), THREE),
            Group(("resnet50",), ("training",), (128,), THREE, "tf32"),
        ),
        starts=2,
        build=200.0,
    ),
    "d": GpuStage(
        "other networks",
        (
            Group(("cifar_resnet20", "resnet18"), BOTH, (256,), BASE),
            Group(("resnet152",), BOTH, (64,), BASE),
        ),
        starts=3,
        build=180.0,
    ),
    "e": GpuStage("flags of XLA", (Group(("resnet50",), ("training",), (128,), FLAGS),), starts=3),
}
DEFAULT = ("a", "b")

# A rehearsal: one small network for all, smaller images and batches, and less time. Stage d then repeats programs of
# earlier stages, and finds them in the caches.
SMALL, SIZE = "cifar_resnet20", (16, 16)
BATCHES = {1: 1, 32: 2, 64: 2, 128: 4, 256: 4}
REHEARSED = {"a": 95.0, "b": 125.0, "c": 222.0, "d": 62.0, "e": 85.0}  # seconds a stage


def rehearsed(letter: str, stage: GpuStage) -> GpuStage:
    """Return a stage as a CPU rehearses it."""
    groups = tuple(
        replace(
            group,
            networks=(SMALL,),
            batches=tuple(BATCHES[batch] for batch in group.batches),
            precision="float32" if group.precision == "tf32" else group.precision,
            size=SIZE,
        )
        for group in stage.groups
    )
    checks = tuple(
        replace(check, arguments=(SMALL, *_without(check.arguments[1:], ("--device", "--tf32"))))
        for check in stage.checks
    )
    seconds = REHEARSED[letter]
    return replace(stage, groups=groups, checks=checks, starts=2, seconds=seconds, build=0.6 * seconds)


def _without(arguments: tuple[str, ...], options: tuple[str, ...]) -> Iterator[str]:
    """Leave out options that take a value."""
    words = iter(arguments)
    for word in words:
        if word in options:
            next(words)
        else:
            yield word


def pairs(groups: tuple[Group, ...], device: str) -> list[tuple[Setting, str]]:
    """List what a stage times: settings on this device, each with its subjects on a GPU."""
    found: dict[tuple[Setting, str], None] = {}
    for group in groups:
        for network, mode, batch in product(group.networks, group.modes, group.batches):
            size = group.size or families.example_size(families.get(network))
            shape = size if isinstance(size, tuple) else (size, size)
            setting = Setting(network, mode, batch, group.precision, shape, device)
            for subject in group.subjects:
                if SUBJECTS[subject].suits(network, mode, "gpu"):
                    found[setting, subject] = None
    return [*found]

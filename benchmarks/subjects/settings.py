"""What is timed: a network in one mode, with one batch, in one precision, on one device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ports.errors import UserError

MODES = ("inference", "training")
RESULT = {"inference": "logits", "training": "loss"}  # of a step

# Units in the last place of float32 by which weights and inputs are moved, to find out how far apart right results may
# be (`measure/expected.py`). The policies are the same in both frameworks.
UNITS = {"float32": 64, "tf32": 4 * 2**13, "bfloat16": 4 * 2**16}
PRECISIONS = {
    "float32": "everything in float32, no TF32",
    "tf32": "everything in float32; products of convolutions and matrices rounded to TF32",
    "bfloat16": "products, activations and their gradients in bfloat16; parameters, BatchNorm and the loss in float32",
}

OWN = ":"  # in the name of somebody's own pair, `./file.py:function`, which brings its batch and type

# Input sets that the steps take in turn.
SETS = 4

# Every subject trains with SGD, whose steps keep the numbers finite however long they are timed.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-2, 0.9, 1e-4


@dataclass(frozen=True)
class Setting:
    """One configuration; `size` is height and width of the images, or the size that the family uses."""

    network: str
    mode: str
    batch: int
    precision: str
    size: tuple[int, ...]
    device: str = "cpu"

    @property
    def name(self) -> str:
        name = re.sub(r"[^\w.]+", "_", self.network)[-100:]
        return f"{name}-{self.mode}-{self.batch}-{self.precision}-{'x'.join(map(str, self.size))}"

    def __str__(self) -> str:
        if OWN in self.network:
            return f"{self.network}, {self.mode}"
        size = "x".join(map(str, self.size))
        return f"{self.network}, {self.mode}, batch {self.batch}, {self.precision}, {size}"

    def asdict(self) -> dict[str, Any]:
        return asdict(self) | {"size": list(self.size)}

    @classmethod
    def of(cls, found: dict[str, Any]) -> Setting:
        return cls(**{**found, "size": tuple(found["size"])})


@dataclass(frozen=True)
class SettingGrid:
    """Every combination of networks, modes, batches and precisions.

    Attributes:
        networks: `resnet50@8` has a batch of its own, 8, instead of `batches`.
        size: height and width; by default what each network was made for.
        odd: 225 pixels instead of 224, for networks that take them: see `benchmarks.subjects.peers`.

    Raises:
        UserError: an unknown mode or precision; TF32 without a GPU.
    """

    networks: Sequence[str]
    modes: Sequence[str]
    batches: Sequence[int]
    precisions: Sequence[str]
    device: str
    size: tuple[int, int] | None = None
    odd: bool = False

    def __post_init__(self) -> None:
        for name, given, known in (("mode", self.modes, MODES), ("precision", self.precisions, tuple(PRECISIONS))):
            if unknown := [value for value in given if value not in known]:
                raise UserError(f"--{name}: got {unknown[0]!r}, expected {', '.join(known)}")
            if not given:
                raise UserError(f"--{name}: got none, expected {', '.join(known)}")
        if "tf32" in self.precisions and self.device == "cpu":
            raise UserError("--precision tf32: got the device cpu, expected an NVIDIA GPU; take float32")

    def settings(self) -> list[Setting]:
        """List them, in the order of the networks.

        Raises:
            UserError: an unknown network, or a batch that is out of range.
        """
        return list(dict.fromkeys(setting for given in self.networks for setting in self._of(given)))

    def _of(self, given: str) -> list[Setting]:
        """List the settings of one network."""
        from ports import families

        if OWN in given:
            return [Setting(given, mode, 0, "float32", (0, 0), self.device) for mode in self.modes]
        network, at, batch = given.partition("@")
        if network.endswith(".py"):
            raise UserError(f"{given}: got a file, expected the function in it that gives the pair: {given}:make")
        spec = families.get(network)
        own = families.example_size(spec)
        free = families.takes_any_size(spec) and families.size_step(spec) == 1
        own = (225, 225) if self.odd and free and own == (224, 224) else own
        if self.size and not families.takes_images(spec):
            raise UserError(f"--image-size: {network} takes no images; leave it out")
        batches = numbers(given, batch) if at else self.batches
        return [
            Setting(network, mode, number, precision, self.size or own, self.device)
            for mode, number, precision in product(self.modes, batches, self.precisions)
        ]


def numbers(owner: str, text: str) -> list[int]:
    """Read numbers of images.

    Raises:
        UserError: the message begins with `owner`.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdigit() and 0 < int(word) < 10**6 for word in words):
        raise UserError(f"{owner}: got {text!r}, expected numbers from 1, with commas")
    return [int(word) for word in words]

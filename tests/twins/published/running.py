"""Runs one published port: moves PyTorch's weights into it, and checks."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import parity
from ports.errors import UserError

from ..building import older_names
from ..running import Outcome, checked, versions
from ..twin import REFUSED
from .inputs import SEED
from .port import Published

# What a verdict was measured with: the check's packages, and those of the PyTorch classes.
PACKAGES = ("transformers", "torchvision", "diffusers", "torch", "jax", "flax", "numpy")


def missing(rows: Iterable[Published]) -> list[str]:
    """Return the packages that rows need and this environment lacks, by the names that pip knows."""
    needed = sorted({package for row in rows for package in ("transformers", *row.needs)})
    return [package for package in needed if not versions([package])]


def run(row: Published, clones: Path) -> Outcome:
    """Build a pair, move the weights, and check."""
    torch.manual_seed(SEED)
    with older_names():
        built = row.build(clones)
        try:
            port = parity.move(built.reference, built.port, *built.inputs, **built.options)
        except UserError as error:
            return Outcome(row.name, REFUSED, reason=f"parity.move: {error}")
        return checked(row.name, built.reference, port, built.inputs, built.options)


def to_json(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return what is stored of outcomes, with the day and the versions that they were measured with."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "versions": versions(PACKAGES), "ports": {one.name: asdict(one) for one in outcomes}}

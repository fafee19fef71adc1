"""Finds the class that builds a network. No framework is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from ports.families import family_of


def network_class(spec: Any, port: str) -> Any:
    """Return the class that builds a description in a port: `ports.resnet.pytorch.ResNet`."""
    family = family_of(spec)
    return getattr(importlib.import_module(f"ports.{family.name}.{port}"), family.network(spec))

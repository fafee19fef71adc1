"""The machine of the measurements, and how warm and how fast it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine.checkout import commit

PACKAGES = (
    "torch",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "dm-haiku",
    "keras",
    "transformers",
    "timm",
    "torchvision",
)
FLAGS = (
    "XLA_FLAGS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TORCH_LOGS",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
)
GPU = (
    "name",
    "driver_version",
    "memory.total",
    "temperature.gpu",
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "clocks_throttle_reasons.active",
)


def described() -> dict[str, Any]:
    """Machine, driver, versions, flags, commit, date."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "gpu": gpu(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """As the system calls it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def readings() -> dict[str, Any]:
    """Clock, temperature and load, if the system reports them; `busy` is the number of cores that others use now."""
    frequency = psutil.cpu_freq()
    temperatures = getattr(psutil, "sensors_temperatures", dict)()
    warmest = max((one.current for found in temperatures.values() for one in found), default=None)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "mhz": round(frequency.current) if frequency else None,
        "celsius": warmest,
        "load": round(os.getloadavg()[0], 2),
        "busy": round(psutil.cpu_percent(0.3) / 100 * (os.cpu_count() or 1), 2),
        "gpu": gpu(),
    }


def gpu() -> dict[str, str] | None:
    """Return nvidia-smi's data about the first GPU; None if there is none.

    A driver that does not know a field refuses the whole query; then ask only for fields that all drivers know.
    """
    for fields in (GPU, GPU[:3]):
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        return dict(zip(fields, (part.strip() for part in said.strip().split(",")), strict=False)) or None
    return None

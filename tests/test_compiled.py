"""Programs are kept between checks; PyTorch's compiler, which a check does not need, is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache

from parity.running import compiled, training
from ports.optimizers import VARIANTS

CONFIG: Any = jax.config


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own, and JAX without the one of the tests."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    before = CONFIG.jax_compilation_cache_dir
    CONFIG.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    CONFIG.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def compute(number: float) -> float:
    """A program that is compiled anew in this process."""
    jax.clear_caches()
    return float(jax.jit(lambda x: x * 3 + number)(2.0))


def programs(place: Path) -> set[str]:
    return {path.name for path in place.rglob("jit_*")}


def test_a_program_is_kept_and_taken_again(cache: Path) -> None:
    with compiled.kept():
        assert compute(1.0) == 7
    held = programs(cache)
    assert held
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("jit_*")}
    with compiled.kept():
        assert compute(1.0) == 7
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("jit_*")} == written


def test_settings_are_put_back(cache: Path) -> None:
    names = [*compiled.SETTINGS, "jax_compilation_cache_dir"]
    before = [getattr(CONFIG, name) for name in names]

    def interrupted() -> None:
        with compiled.kept():
            assert str(cache) in CONFIG.jax_compilation_cache_dir
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [getattr(CONFIG, name) for name in names] == before
    compute(2.0)
    assert not programs(cache), "JAX still writes there after the block"


def test_the_callers_folder_is_used(cache: Path, tmp_path: Path) -> None:
    CONFIG.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    with compiled.kept():
        assert str(tmp_path / "own") == CONFIG.jax_compilation_cache_dir
    assert not cache.exists()


@pytest.mark.parametrize("asked", ["0", "/proc/nowhere"])
def test_without_a_folder_nothing_is_kept(cache: Path, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", asked)
    with compiled.kept():
        assert compute(3.0) == 9
        assert CONFIG.jax_compilation_cache_dir is None


def test_a_damaged_program_is_compiled_again(cache: Path) -> None:
    with compiled.kept():
        compute(4.0)
    for path in cache.rglob("jit_*"):
        path.write_bytes(path.read_bytes()[:20])
    with compiled.kept():
        assert compute(4.0) == 10


def test_the_oldest_programs_go(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}").write_bytes(bytes(100))
        os.utime(tmp_path / f"{i}", (i, i))
    compiled._pruned(tmp_path, limit=1000)
    assert len([*tmp_path.iterdir()]) == 10
    compiled._pruned(tmp_path, limit=900)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "7", "8", "9"]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_optimizer_without_the_wrappers_takes_the_same_steps(name: str) -> None:
    """Bit for bit, the state too."""
    variant, found = VARIANTS[name], []
    kind: Any = getattr(torch.optim, variant.form.torch)
    for made in (kind, training._uncompiled(kind)):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
        optimizer = made([parameter], lr=0.1, **variant.options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        for step in range(3):
            (parameter * parameter * (step + 1)).sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            assert parameter.grad is None
        state = {key: np.asarray(value) for key, value in optimizer.state[parameter].items()}
        found.append({**state, "parameter": parameter.detach().numpy()})
        assert parameter.requires_grad
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])


def test_a_check_does_not_import_torch_compile() -> None:
    source = """
import sys, numpy as np, torch, parity
from flax import nnx
class Net(nnx.Module):
    def __init__(self):
        self.up = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    def __call__(self, x):
        return nnx.relu(self.up(x))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
x = np.ones((2, 4)) + np.arange(8).reshape(2, 4) / 7
assert parity.check(model, parity.move(model, Net(), x), x)
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

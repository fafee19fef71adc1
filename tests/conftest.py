"""Shared fixtures: the folder of real data, where there is one, quick compilation, and the same numbers in every run.

`pytest --fast` leaves out the modules that take most of the time (`make test-fast`). Tests marked `nightly` run with
`pytest --nightly` alone (`make test-nightly`): they take minutes. Of the cases of a test marked `sample(n)`, n run by
day and all nightly. `pytest --shuffle 7` runs the modules, and the tests of each, in the random order of that seed.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import checked
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Every call of the project's functions is checked against its annotations, shapes too. TYPES=0 leaves that out.
# The hook must come before the first import of the project. pytest loads `parity` and `parity.plugin` earlier, so those
# two modules are not checked.
#
# Two more are not checked. The first has a call for each instruction of a pickle: with checks it takes 20 times
# as long. The second calls itself for each level of a file: the checker's own calls reach Python's limit too early.
if os.environ.get("TYPES") != "0":
    but = ("ports.weights.files.formats.pickles", "ports.weights.files.formats.msgpacked")
    checked.install(["ports", "parity", "benchmarks"], but)

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: a thread each, or they wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# What XLA has compiled once in a session it takes from a folder: many tests, and the commands that they run, share
# small networks. Set here, before a test imports jax.
COMPILED = tempfile.TemporaryDirectory(prefix="parity-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


# Hypothesis draws the same examples in every run, and does not look at the clock: a busy machine fails no test.
UNSUITABLE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("tests", deadline=None, derandomize=True, database=None, suppress_health_check=UNSUITABLE)
settings.load_profile("tests")


# Modules that `--fast` leaves out: they take most of the time. Each tests a whole command, or many networks.
SLOW = re.compile(
    "test_(added_biases|bad_files|benchmark_processes|benchmarks|bombs|calls|check|cifar10|cli|complex|config"
    "|contractions|conversion|convert|convolution|cut_otherwise|decoders|default_names|depth|detection|docs|draws"
    "|examples|export|faithful|false_alarms|findings|fixes|float32_tables|folded|fuzz|gpu_stages|hypotheses"
    "|imports|isolation|layer_rules|lifted|mapping|mapping_heads|moved_names|moved_right|moves|networks"
    "|optimizer_files|optimizer_states|own_attributes|own_cells|own_models|packed|places|plain|planted|plugin"
    "|pooling_head|porting_bugs|ports_of_others|precise|precision|readme|real_classes|real_images|rearranged"
    "|recurrent|resume|rivals|rulesfile|segmentation|stacks|told_once|training|transformer|trap_examples|tutorial"
    "|unexercised|vit|weather|weights|winograd|zero_copy)[.]py"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the modules that take most of the time")
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly too")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in the random order of this seed")


def beyond_samples(items: list[pytest.Item]) -> set[str]:
    """Return the cases of tests marked `sample(n)` that are not among n of them, evenly over the table."""
    cases: dict[tuple[Path, str, int], list[str]] = {}
    for item in items:
        if mark := item.get_closest_marker("sample"):
            cases.setdefault((item.path, item.name.partition("[")[0], *mark.args), []).append(item.nodeid)
    kept = {ids[i * len(ids) // count] for (*_, count), ids in cases.items() for i in range(min(count, len(ids)))}
    return {nodeid for ids in cases.values() for nodeid in ids} - kept


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow modules; shuffle the modules and the tests within each, whose fixtures are still made once."""
    if config.getoption("--fast"):
        slow = [item for item in items if SLOW.fullmatch(item.path.name)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not SLOW.fullmatch(item.path.name)]
    if not config.getoption("--nightly"):
        nightly = {item.nodeid for item in items if item.get_closest_marker("nightly")} | beyond_samples(items)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in nightly])
        items[:] = [item for item in items if item.nodeid not in nightly]
    if (seed := config.getoption("--shuffle")) is None:
        return
    rng = random.Random(seed)
    modules = {item.path: rng.random() for item in items}
    items.sort(key=lambda item: (modules[item.path], rng.random()))


def pytest_collection_finish() -> None:
    """Let garbage collection look less often, and not at what the imports made: it was a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def seed_everything() -> None:
    """Seed the global generators, so that a test draws the same numbers alone, after others and in any order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what libraries draw from
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` looks for other devices, which takes far longer
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="module", autouse=True)
def same_numbers_in_every_module() -> None:
    seed_everything()


@pytest.fixture(autouse=True)
def same_numbers_in_every_test(same_numbers_in_every_module: None) -> None:
    seed_everything()


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go() -> Iterator[None]:
    """A process with the programs of a thousand tests in it is slow to look through for garbage."""
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def programs_share_a_context() -> Iterator[None]:
    """Let the programs of a module share one context of MLIR.

    JAX makes one for each program, with all dialects in it, and lets it go again: a tenth of the time of the tests.
    """
    from jax._src.interpreters import mlir

    with pytest.MonkeyPatch.context() as patch:
        if make := getattr(mlir, "make_ir_context", None):  # not public: another release may not have it
            patch.setattr(mlir, "make_ir_context", functools.cache(make))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real weights and images that are not part of this project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder ../shared/data: {folder}")
    return folder


@pytest.fixture
def quick() -> Iterator[None]:
    """XLA without its optimisations, for small networks that run once: compiling them is all the wait."""
    from networks import quick_compilation

    with quick_compilation():
        yield


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """Check no annotations during this test.

    For a type that the project itself refuses, for `torch.compile` and `torch.fx`, which cannot trace the checks, and
    for the state of Python's random generator, from which beartype draws.
    """
    with checked.unchecked():
        yield

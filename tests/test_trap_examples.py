"""Every trap has an example: its right code computes what PyTorch's does, and its wrong code something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from docs.generator import examples
from parity.traps.catalogue import TRAPS
from parity.traps.examples import PLACES, Example, Group, by_name, groups

GROUPS = tuple(groups())
EXAMPLES = by_name()
# Tables in float32 inside of optax, PyTorch and JAX.
CLOSE = 1e-6


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly() -> Iterator[None]:
    """Each piece of code runs once: compiling it well takes longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def equal(a: Sequence[np.ndarray], b: Sequence[np.ndarray], tolerance: float) -> bool:
    if [x.shape for x in a] != [x.shape for x in b]:
        return False
    return all(np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True) for x, y in zip(a, b, strict=True))


def problems(example: Example) -> list[str]:
    """Return what is wrong with an example."""
    right, wrong = examples.in_flax(example, example.right), examples.in_flax(example, example.wrong)
    said = [f"{example.name}: right and wrong code compute the same"] if equal(right, wrong, 1e-13) else []
    if example.torch and example.compare and example.place != "layer":
        expected = examples.in_torch(example)
        if not equal(expected if isinstance(expected, list) else [expected], right, CLOSE):
            said.append(f"{example.name}: the right code does not compute what PyTorch's does")
    return said


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.title)
def test_wrong_code_is_wrong_and_right_code_is_right(group: Group) -> None:
    assert [line for example in group.examples for line in problems(example)] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gelu-tanh", {"wrong": "nnx.gelu(x, approximate=False)"}),
        ("gelu-tanh", {"right": "nnx.gelu(x)", "wrong": "x"}),
        ("max-pool-same", {"right": "nnx.max_pool(x, (3, 3), (2, 2), 'SAME')", "wrong": "x"}),
        ("momentum-missing", {"right": "tx = optax.sgd(lr, momentum=0.8)"}),
        ("loss-half-square", {"right": "optax.l2_loss(logits, target).mean()", "wrong": "0.0"}),
        ("relu-gradient-half", {"right": "jnp.maximum(x, 0)", "wrong": "x"}),
    ],
)
def test_an_example_that_says_something_false_is_noticed(name: str, change: dict[str, str]) -> None:
    assert problems(EXAMPLES[name]) == []
    assert len(problems(replace(EXAMPLES[name], **change))) == 1


def test_every_trap_has_an_example_and_every_example_a_trap() -> None:
    """Whoever adds a trap adds a row to `parity/traps/examples/`; a name that changes is noticed here."""
    assert {trap.name for trap in TRAPS} - set(EXAMPLES) == set()
    assert set(EXAMPLES) - {trap.name for trap in TRAPS} == set()


def test_an_example_stands_in_the_file_of_its_place() -> None:
    places = {(trap.name, trap.place) for trap in TRAPS}
    assert [name for name, example in EXAMPLES.items() if (name, example.place) not in places] == []


def test_two_rows_for_one_trap_are_refused(tmp_path: Path) -> None:
    row = '[[group]]\ntitle = ""\nwhy = ""\nright = "x"\n[group.traps]\ngelu-tanh = "y"\n'
    for place in PLACES:
        (tmp_path / f"{place}.toml").write_text('setup = ""\n' + row)
    with pytest.raises(ValueError, match="gelu-tanh: got two rows"):
        by_name(tmp_path)

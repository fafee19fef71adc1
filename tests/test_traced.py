"""The rearrangement behind numbers that moved, whatever moved them; and its row in files and scripts."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from ports.weights.form.rearrangement import Rearrangement
from ports.weights.form.traced import traced
from ports.weights.rules import script
from ports.weights.rules.tensors import TensorRow, parsed

Arrays = tuple[np.ndarray, ...]
WIDTH, DEPTH = 4, 3


def counted(*shapes: tuple[int, ...]) -> Arrays:
    """Return arrays of these shapes in which each number is another one."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return tuple(
        x.reshape(shape) for x, shape in zip(np.split(np.arange(ends[-1]) + 7, ends[:-1]), shapes, strict=True)
    )


def kernel(weight: np.ndarray, depth: int = DEPTH) -> np.ndarray:
    """Return (heads * depth, width) as Flax has it: (width, heads, depth)."""
    return weight.T.reshape(weight.shape[1], -1, depth)


def split(weight: np.ndarray, *heads: int) -> Arrays:
    return tuple(np.split(weight, np.cumsum(heads)[:-1] * DEPTH))


def by_group(weight: np.ndarray) -> Arrays:
    grouped = weight.reshape(2, 4, DEPTH, WIDTH)
    return tuple(kernel(x.reshape(-1, WIDTH)) for x in (grouped[:, :2], grouped[:, 2], grouped[:, 3]))


def stacked_grouped(*weights: np.ndarray) -> Arrays:
    parts = zip(*(split(weight, 4, 2, 2) for weight in weights), strict=True)
    return tuple(np.stack([kernel(x) for x in part]) for part in parts)


MOVES: dict[str, tuple[Arrays, Callable[..., Arrays]]] = {
    "same": (counted((4, 6)), lambda w: (w,)),
    "transposed": (counted((4, 6)), lambda w: (w.T,)),
    "convolution": (counted((5, 4, 3, 2)), lambda w: (w.transpose(2, 3, 1, 0),)),
    "transposed convolution": (counted((5, 4, 3, 2)), lambda w: (w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),)),
    "a square": (counted((6, 6)), lambda w: (w.T.reshape(6, 2, 3),)),
    "one of three": (counted((36, WIDTH)), lambda w: tuple(map(kernel, split(w, 4, 4, 4)))),
    "one of three, biases": (counted((36,)), lambda b: tuple(b.reshape(3, 4, DEPTH))),
    "by head": (
        counted((36, WIDTH)),
        lambda w: tuple(kernel(x) for x in w.reshape(4, 3, -1).swapaxes(0, 1).reshape(3, -1, WIDTH)),
    ),
    "grouped": (counted((24, WIDTH)), lambda w: tuple(map(kernel, split(w, 4, 2, 2)))),
    "grouped, biases": (counted((24,)), lambda b: tuple(x.reshape(-1, DEPTH) for x in split(b, 4, 2, 2))),
    "by group": (counted((24, WIDTH)), by_group),
    "one key for all": (counted((18, WIDTH)), lambda w: tuple(map(kernel, split(w, 4, 1, 1)))),
    "another depth": (counted((24, WIDTH)), lambda w: (kernel(w[:12]), kernel(w[12:], 2))),
    "another depth of each head": (
        counted((30, WIDTH)),
        lambda w: tuple(
            kernel(x.reshape(-1, WIDTH), x.shape[1]) for x in np.split(w.reshape(6, 5, WIDTH), [3], axis=1)
        ),
    ),
    "layers": (counted((6, 4), (6, 4), (6, 4)), lambda *w: (np.stack([x.T for x in w]),)),
    "layers backwards": (counted((6, 4), (6, 4), (6, 4)), lambda *w: (np.stack(w[::-1], 1),)),
    "layers of three": (
        counted((36, WIDTH), (36, WIDTH)),
        lambda *w: tuple(
            np.stack([kernel(x) for x in part]) for part in zip(*(split(x, 4, 4, 4) for x in w), strict=True)
        ),
    ),
    "layers of grouped": (counted((24, WIDTH), (24, WIDTH)), stacked_grouped),
    "grouped in one": (counted((12, WIDTH), (6, WIDTH), (6, WIDTH)), lambda *w: (kernel(np.concatenate(w)),)),
    "inputs first, in one": (counted((WIDTH, 12), (WIDTH, 6)), lambda *w: (np.concatenate(w, 1).T,)),
    "kernels of two depths": (counted((12, 4), (12, 2)), lambda *w: (np.concatenate(w, 1),)),
}


def in_the_order(arrays: Sequence[np.ndarray], order: Sequence[int]) -> Arrays:
    return tuple(arrays[i] for i in order)


@pytest.mark.parametrize("case", MOVES)
def test_what_moved_numbers_is_found(case: str) -> None:
    tensors, move = MOVES[case]
    for order in permutations(range(len(tensors))):
        for theirs in permutations(range(len(move(*tensors)))):
            given, expected = in_the_order(tensors, order), in_the_order(move(*tensors), theirs)
            form = traced(given, expected)
            assert form is not None
            assert same(form.to_flax(given), expected)
            assert same(form.to_torch(expected), given)


def same(arrays: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(arrays, others, strict=True))


def row_of(form: Rearrangement, tensors: Arrays, variables: Arrays) -> TensorRow:
    return TensorRow(tuple(f"t{i}" for i in range(len(tensors))), tuple(f"v{i}" for i in range(len(variables))), form)


@pytest.mark.parametrize("case", MOVES)
def test_files_and_scripts_say_the_same(case: str) -> None:
    tensors, move = MOVES[case]
    form = traced(tensors, move(*tensors))
    assert form is not None
    row = row_of(form, tensors, move(*tensors))
    assert parsed(tomllib.loads(row.toml())["tensor"][0]) == row
    code: dict[str, Any] = {"__name__": "convert"}
    exec(script.text([row], [], "convert.py"), code)
    (written,) = code["ROWS"]
    together, apart, forth, back = (code[name] for name in ("together", "apart", "forth", "back"))
    found = apart(forth(together(tensors, written["gather"]), written), written["spread"])
    assert same(found, move(*tensors))
    assert same(apart(back(together(found, written["spread"]), written), written["gather"]), tensors)


@pytest.mark.parametrize(
    ("tensors", "variables"),
    [
        (counted((6, 4)), (counted((6, 4))[0][[1, 0, 2, 3, 4, 5]],)),
        (counted((6, 4)), (counted((6, 4))[0][[0, 0, 2, 3, 4, 5]],)),
        (counted((6, 4)), (counted((6, 5))[0],)),
        (counted((6, 4)), (np.zeros((6, 4), int),)),
        (counted((6, 4)), ()),
        (
            counted((24, WIDTH)),
            tuple(kernel(x) for x in split(counted((24, WIDTH))[0][::-1][[*range(1, 24), 0]], 4, 2, 2)),
        ),
    ],
    ids=["rows exchanged", "a row twice", "more numbers", "other numbers", "nothing", "a row elsewhere"],
)
def test_other_moves_are_none(tensors: Arrays, variables: Arrays) -> None:
    assert traced(tensors, variables) is None


ROW = """[[tensor]]
torch = ["a"]
flax = ["b", "c"]
shape = [6, 2]
reshape = [12]
spread = "split"
spread_sizes = [8, 4]
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("spread_shape = [[2, 4]]", "spread_shape: got 1 lists, expected 2, one for each name"),
        ("spread_shape = [4, 2]", r"spread_shape: got \[4, 2\], expected a list of numbers from 0 for each name"),
        ("spread_shape = [[4, 2], [2, 2]]\nspread_reshape = [[8], [5]]", "spread 2: .* hold different numbers"),
        ("spread_shape = [[4, 2], [2, 2]]\nspread_transpose = [[0, 0], [0, 1]]", "spread 1: transpose: got"),
        (
            "spread_shape = [[4, 3], [2, 2]]\nspread_reshape = [[12], [4]]",
            r"spread 1: got a part of shape \(12,\), expected \(8,\)",
        ),
    ],
)
def test_a_wrong_step_of_a_part_is_named(more: str, said: str) -> None:
    row = parsed(tomllib.loads(ROW + more)["tensor"][0])
    assert isinstance(row, list)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError("; ".join(row))
    right = parsed(tomllib.loads(ROW + "spread_shape = [[4, 2], [2, 2]]\nspread_reshape = [[8], [4]]")["tensor"][0])
    assert isinstance(right, TensorRow)

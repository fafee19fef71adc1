"""How alike the names of tensors and modules of two models are.

A name is taken in words and numbers. A number tells which of several layers is meant where both models have the same
numbers behind such a word: 0, 1, 2 of `layers` and `blocks`. Where one counts fc1 and fc2 and the other Dense_0 and
Dense_1, the numbers tell nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# What a tensor is in its module, by a word of its name.
ROLES = {
    **dict.fromkeys(("weight", "kernel", "w", "scale", "gamma", "g", "embedding", "weights"), "weight"),
    **dict.fromkeys(("bias", "b", "beta", "offset", "shift", "biases"), "bias"),
    **dict.fromkeys(("mean", "avg"), "mean"),
    **dict.fromkeys(("var", "variance"), "variance"),
}
STATISTICS = ("mean", "variance")
# Words that say one thing, by the one that is compared.
SYNONYMS = {
    **dict.fromkeys(("q",), "query"),
    **dict.fromkeys(("k",), "key"),
    **dict.fromkeys(("v",), "value"),
    **dict.fromkeys(("o", "output"), "out"),
    **dict.fromkeys(("attention",), "attn"),
    **dict.fromkeys(("ln", "layernorm", "rmsnorm"), "norm"),
    **dict.fromkeys(("dense", "linear", "lin"), "fc"),
    **dict.fromkeys(("emb", "embedding", "embeddings"), "embed"),
    **dict.fromkeys(("src", "sources"), "source"),
    **dict.fromkeys(("tgt", "trg", "dst", "targets"), "target"),
}
# Single words that say both: the weight of the query, and its bias.
LETTERED = {f"{letter}{part}": role for letter, role in (("w", "weight"), ("b", "bias")) for part in "qkvo"}
SYNONYMS |= {word: SYNONYMS[word[1]] for word in LETTERED}
CLOSE = 1e-9  # scores that are equal


WORDS = {*ROLES, *(SYNONYMS.get(word, word) for word in ROLES)}


@dataclass(frozen=True)
class Number:
    """A number in a name.

    Attributes:
        peers: all numbers that names of this model have in its place.
    """

    value: str
    peers: frozenset[str]


Token = str | Number


def words(name: str) -> list[str]:
    """Return the words and numbers of a name in lower case: `h_3.cAttn` gives h, 3, c, attn."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def differ_in_numbers(a: str, b: str) -> bool:
    """Return whether two names are the same but for their numbers, as `blocks.0.up` and `blocks.1.up`."""
    mine, theirs = words(a), words(b)
    plain = [[word for word in some if not word.isdigit()] for some in (mine, theirs)]
    return plain[0] == plain[1] and mine != theirs and len(mine) == len(theirs)


def tokens(names: Iterable[str]) -> dict[str, tuple[Token, ...]]:
    """Return the words and numbers of all names of a model."""
    split = {name: words(name) for name in names}
    peers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for some in split.values():
        for i, word in enumerate(some):
            if word.isdigit():
                peers[_place(some, i)].add(word)
    return {
        name: tuple(
            Number(word, frozenset(peers[_place(some, i)])) if word.isdigit() else SYNONYMS.get(word, word)
            for i, word in enumerate(some)
        )
        for name, some in split.items()
    }


def _place(some: Sequence[str], i: int) -> tuple[str, ...]:
    return tuple("*" if word.isdigit() else word for word in some[:i])


def starred(names: Sequence[str]) -> str:
    """Return a name for several that differ in their numbers, with a star for each number that they do not share."""
    pieces = [re.split(r"(\d+)", name) for name in names]
    places = enumerate(zip(*pieces, strict=False))
    return "".join("*" if i % 2 and len({*parts}) > 1 else parts[0] for i, parts in places)


def similarity(a: Sequence[Token], b: Sequence[Token]) -> float:
    """Return how alike two names of tensors are, from 0 to 1, but for the last word that says what each is."""
    return module_similarity(without_role(a), without_role(b))


def module_similarity(mine: Sequence[Token], theirs: Sequence[Token]) -> float:
    """Return how alike two names of modules are; last words that nothing in the other name is like make them unlike."""
    last = [next((token for token in side[::-1] if isinstance(token, str)), None) for side in (mine, theirs)]
    both = ((word, other) for word, side in ((last[0], theirs), (last[1], mine)) for other in side)
    if None not in last and not any(_alike(word, other) for word, other in both):
        return 0.0
    return part_similarity(mine, theirs)


def part_similarity(mine: Sequence[Token], theirs: Sequence[Token]) -> float:
    """Return how alike the parts of two names are; other numbers in the same places make them unlike."""
    numbers = [[token for token in side if isinstance(token, Number)] for side in (mine, theirs)]
    if len(numbers[0]) == len(numbers[1]):
        both = zip(*numbers, strict=True)
        if any(x.peers == y.peers and x.value != y.value for x, y in both):
            return 0.0
    if not mine and not theirs:
        return 1.0
    table = [[0] * (len(theirs) + 1) for _ in range(len(mine) + 1)]
    for i, x in enumerate(mine):
        for j, y in enumerate(theirs):
            step = table[i][j] + 1 if _alike(x, y) else 0
            table[i + 1][j + 1] = max(step, table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(mine) + len(theirs))


def without_role(name: Sequence[Token]) -> list[Token]:
    """Return the name of a tensor but for the last word that says what it is in its module."""
    last = max((i for i, token in enumerate(name) if isinstance(token, str)), default=-1)
    return [token for i, token in enumerate(name) if not (i == last and token in WORDS)]


def _alike(a: Token | None, b: Token | None) -> bool:
    if not isinstance(a, str) or not isinstance(b, str):
        return a == b
    return a == b or (min(len(a), len(b)) > 1 and (a.startswith(b) or b.startswith(a)))


def best(left: Sequence[str], right: Sequence[str], score: Callable[[str, str], float]) -> list[tuple[str, str]]:
    """Return the pairs of names that are each other's only best."""
    scores = {(a, b): score(a, b) for a in left for b in right}
    found = []
    for a in left:
        row = sorted(((scores[a, b], b) for b in right), reverse=True)
        if not row or row[0][0] <= 0 or (len(row) > 1 and row[1][0] > row[0][0] - CLOSE):
            continue
        b = row[0][1]
        column = sorted((scores[other, b] for other in left), reverse=True)
        if scores[a, b] > column[0] - CLOSE and (len(column) < 2 or column[1] < column[0] - CLOSE):
            found.append((a, b))
    return found

"""Which layer is which: what is certain is paired, what is not is an error with its candidates."""

from __future__ import annotations

import numpy as np
import pytest

from parity.pairing.matching import pair
from parity.pairing.naming import unpaired
from parity.pairing.pairs import Pairing
from parity.running.model_layers import ModelLayer
from ports import UserError

RNG = np.random.default_rng(0)


def layer(name: str, kind: str = "linear", shape: tuple[int, ...] = (3, 3), rank: int | None = 0) -> ModelLayer:
    return ModelLayer(name, kind, {"weight": f"{name}.weight"}, {"weight": RNG.standard_normal(shape)}, rank)


def chain(*layers: ModelLayer) -> list[ModelLayer]:
    for i, one in enumerate(layers):
        one.rank = i
    return list(layers)


def result(pairing: Pairing) -> dict[str, tuple[str, str]]:
    return {p.torch.name: (p.flax.name, p.why) for p in pairing.pairs}


def test_equal_names_come_first_whatever_the_order() -> None:
    found = pair(chain(layer("layers.0.fc"), layer("layers.1.fc")), chain(layer("layers_1.fc"), layer("layers_0.fc")))
    assert result(found) == {
        "layers.0.fc": ("layers_0.fc", "equal names"),
        "layers.1.fc": ("layers_1.fc", "equal names"),
    }


def test_a_name_that_another_shape_has_by_chance_tells_nothing() -> None:
    """Linen counts its layers from 0: `conv1` is `Conv_0`."""
    ours = chain(layer("conv1", shape=(2, 3)), layer("b.0"), layer("b.1"))
    found = result(pair(ours, chain(layer("Conv_0", shape=(2, 3)), layer("Conv_1"), layer("Conv_2"))))
    assert [found[name][0] for name in ("conv1", "b.0", "b.1")] == ["Conv_0", "Conv_1", "Conv_2"]
    misfit = result(pair(chain(layer("conv1", shape=(2, 3))), chain(layer("Conv_1", shape=(3, 2)))))
    assert misfit == {"conv1": ("Conv_1", "equal names, other shapes")}


def test_equal_values_settle_what_names_leave_open() -> None:
    q, k = layer("q"), layer("k")
    key, query = layer("Dense_0"), layer("Dense_1")
    key.values, query.values = k.values, q.values
    found = pair(chain(q, k), chain(key, query))
    assert result(found) == {"q": ("Dense_1", "equal values"), "k": ("Dense_0", "equal values")}


def test_constant_tensors_are_no_evidence() -> None:
    a, b = layer("a"), layer("b")
    x, y = layer("x"), layer("y")
    for one in (a, b, x, y):
        one.values = {"weight": np.ones((3, 3))}
    y.rank = a.rank = None
    a.rank, b.rank, x.rank, y.rank = 0, 1, 0, 1
    assert {why for _, why in result(pair([a, b], [x, y])).values()} == {"the order of calls"}


def test_shapes_that_only_one_layer_has() -> None:
    found = pair(chain(layer("a"), layer("b", shape=(2, 3))), chain(layer("x", shape=(2, 3)), layer("y")))
    assert result(found)["b"] == ("x", "the only ones of these shapes")


def test_order_of_calls_where_both_call_the_same() -> None:
    found = pair(chain(layer("a"), layer("b")), chain(layer("x"), layer("y")))
    assert result(found) == {"a": ("x", "the order of calls"), "b": ("y", "the order of calls")}


def test_other_order_is_an_error_with_the_candidates() -> None:
    torch = chain(layer("a"), layer("stem", "conv", (4, 3, 3, 3)), layer("b"))
    flax = chain(layer("stem", "conv", (4, 3, 3, 3)), layer("x"), layer("y"))
    torch[1].values = flax[0].values
    with pytest.raises(UserError, match="cannot be paired") as error:
        pair(torch, flax)
    assert "a (linear: weight (3, 3)): candidates x (linear" in str(error.value)
    assert "y (linear" in str(error.value)


def test_names_settle_it() -> None:
    torch = chain(layer("a"), layer("stem", "conv", (4, 3, 3, 3)), layer("b"))
    flax = chain(layer("stem", "conv", (4, 3, 3, 3)), layer("x"), layer("y"))
    found = pair(torch, flax, {"a": "y"})
    assert result(found)["a"] == ("y", "given")
    assert result(found)["b"][0] == "x"


def test_patterns_pair_modules() -> None:
    torch = chain(*(layer(f"blocks.{i}.{n}") for i in range(2) for n in ("q", "k")))
    flax = chain(*(layer(f"Block_{i}.{n}") for i in (1, 0) for n in ("k", "q")))
    found = pair(torch, flax, {"blocks.*": "Block_*"})
    assert {a: b for a, (b, _) in result(found).items()} == {
        f"blocks.{i}.{n}": f"Block_{i}.{n}" for i in range(2) for n in ("q", "k")
    }


@pytest.mark.parametrize("names", [{"nothing": "x"}, {"a": "nothing"}])
def test_names_that_are_not_there(names: dict[str, str]) -> None:
    with pytest.raises(UserError, match="names: '"):
        pair([layer("a")], [layer("x")], names)


def test_layers_without_a_call_need_no_partner() -> None:
    found = pair([layer("a"), layer("shortcut", "conv", rank=None)], [layer("x"), layer("unused", rank=None)])
    assert [one.name for one in found.unused] == ["shortcut"]
    assert "never used" in str(found)


def test_tied_output_layer_needs_no_partner() -> None:
    embedding, head = layer("emb", "embedding"), layer("head")
    head.values = {"weight": embedding.values["weight"]}
    found = pair([embedding, head], [layer("Embed_0", "embedding")])
    assert result(found) == {"emb": ("Embed_0", "the only ones of these shapes")}


def test_another_number_of_layers_names_the_layer() -> None:
    with pytest.raises(UserError, match="PyTorch has no more norm"):
        pair([layer("a")], [layer("a"), layer("ln", "norm")])


def test_an_error_about_many_layers_is_short() -> None:
    ours = chain(*(layer(f"layers.{i}.fc", shape=(i + 2, 3)) for i in range(40)))
    theirs = chain(*(layer(f"convs.{i}", "conv", (2, 5, i + 3)) for i in range(40)))
    with pytest.raises(UserError, match="cannot be paired") as error:
        pair(ours, theirs)
    assert len(str(error.value).splitlines()) <= 15


def test_layers_of_a_kind_are_one_line_of_the_error() -> None:
    ours = chain(*(layer(f"layers.{i}.fc") for i in range(40)))
    with pytest.raises(
        UserError, match=r"PyTorch's layers\.\*\.fc \(linear: weight \(3, 3\)\), 40 of them: candidates none"
    ):
        pair(ours, chain(layer("a", "norm", (7,))))


def test_a_prefix_of_one_model_tells_nothing() -> None:
    torch = chain(layer("stem", "conv"), *(layer(f"transformer.h.{i}.fc") for i in range(3)))
    flax = chain(layer("h.2.fc"), layer("stem", "conv"), layer("h.0.fc"), layer("h.1.fc"))
    found = result(pair(torch, flax))
    assert {name: found[name] for name in found if name != "stem"} == {
        f"transformer.h.{i}.fc": (f"h.{i}.fc", "equal names behind a prefix") for i in range(3)
    }


def test_numbers_of_similar_names_count_only_where_both_models_have_the_same() -> None:
    """fc1 and fc2 are not Dense_1 and Dense_0: the order of calls says which is which."""
    torch, flax = chain(layer("fc1", "own"), layer("fc2", "own")), chain(layer("dense_0"), layer("dense_1"))
    assert {name: other for name, (other, _) in result(pair(torch, flax)).items()} == {
        "fc1.weight": "dense_0.weight",
        "fc2.weight": "dense_1.weight",
    }


def test_the_suggested_line_pairs_tensors_of_one_role() -> None:
    """A shift with a shift: the scale has the same size, and comes first."""
    norms = chain(layer("ln_1", "affine"), layer("ln_2", "affine"))
    for one in norms:
        one.values = {"weight": RNG.standard_normal(4), "bias": RNG.standard_normal(4)}
        one.tensors = {leaf: f"{one.name}.{leaf}" for leaf in one.values}
    own = []
    for name in ("pre.beta", "post.beta", "pre.gamma", "post.gamma"):
        own.append(ModelLayer(name, "own", {"value": name}, {"value": RNG.standard_normal(4)}, len(own)))
    said = unpaired(norms, own, "nnx")
    assert "names={'ln_1.bias': 'pre.beta'" in said

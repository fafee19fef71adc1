"""States of optimizers in files: known, complete and whole numbers of steps, or one line and exit 2."""

from __future__ import annotations

import copy
import functools
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import torch
from flax import nnx
from test_bad_files import refused
from test_convert import NAME, noise
from test_formats import same, suffix
from test_optimizer_states import BAD_STEPS, OTHERS

import ports
from parity.commands.cli import main
from ports import optim
from ports.errors import UserError
from ports.optimizers import CLASSES, OPTAX, VARIANTS
from ports.weights import convert, optimizer, save
from ports.weights.checkpoints.checkpoint import open_checkpoint
from ports.weights.checkpoints.inspection import inspect
from ports.weights.files import formats
from ports.weights.files.formats import FORMATS, Content
from ports.weights.files.guard import DEBUG
from ports.weights.files.source import Source
from ports.weights.optimizer import table as optimizer_table

OUT = "--weights-only"
TENSORS = ("exp_avg", "exp_avg_sq")


def network() -> Any:
    net = ports.create(NAME, "pytorch", seed=None)
    with torch.no_grad():
        for name, array in noise().items():
            net.state_dict()[name].copy_(torch.from_numpy(np.array(array)))
    return net


@functools.cache
def _trained(kind: str, seed: int, **options: Any) -> dict[str, Any]:
    net = network()
    tuned = getattr(torch.optim, kind)(net.named_parameters(), lr=1e-4, **options)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        tuned.step()
    return {"model": net.state_dict(), "optimizer": tuned.state_dict()}


def trained(kind: str = "Adam", **options: Any) -> dict[str, Any]:
    """A training checkpoint of PyTorch; whoever gets it may change it."""
    whole = _trained(kind, 0, **options)
    tuned = whole["optimizer"]
    groups = [dict(group) for group in tuned["param_groups"]]
    return {**whole, "optimizer": {"state": {n: dict(t) for n, t in tuned["state"].items()}, "param_groups": groups}}


def flat(whole: dict[str, Any], path: Path) -> Content:
    """The same as a flat file holds it, from the one that `convert` writes."""
    torch.save(whole, path / "w.pth")
    convert(path / "w.pth", path / "w.npz")
    (path / "w.pth").unlink()
    return formats.read(path / "w.npz")


def saved(content: Content, path: Path, name: str) -> Path:
    (path / "w.npz").unlink(missing_ok=True)
    formats.write(path / f"w{suffix(FORMATS[name])}", content, FORMATS[name])
    return path / f"w{suffix(FORMATS[name])}"


# ---- steps


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    "step",
    [2.7, -1, float("nan"), float("inf"), "3", 1j, [1, 2], 2**63, {}]
    + [torch.tensor(s) for s in (2.7, -1.0, float("nan"), float("inf"), 1j, [3.0])],
    ids=lambda step: ascii(step)[:20],
)
def test_steps_in_pytorchs_files(step: Any, tmp_path: Path, capsys: Any) -> None:
    whole = trained()
    for table in whole["optimizer"]["state"].values():
        table["step"] = step
    torch.save(whole, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said="expected one whole number")
    assert main(["inspect", str(tmp_path / "w.pt")]) == 0
    assert "cannot be read" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out.npz"), OUT]) == 0


BAD_ARRAYS = [np.array(2.7), np.array(-1), np.array(np.nan), np.array(np.inf), np.array(1j), np.ones(2), np.array(True)]


@pytest.mark.sample(6)
@pytest.mark.parametrize("step", BAD_ARRAYS, ids=lambda step: ascii(step)[6:20])
@pytest.mark.parametrize("name", ["npz", "safetensors", "sharded", "msgpack", "orbax"])
def test_steps_in_flat_files_and_trees(step: Any, name: str, tmp_path: Path, capsys: Any) -> None:
    content = flat(trained(), tmp_path)
    tree = content.tree | {"optimizer/step": step}
    if FORMATS[name].nested:
        tree = {"model": noise(), "optimizer": {"step": step, "exp_avg": {"fc.bias": np.ones(10, np.float32)}}}
    if name in ("safetensors", "sharded") and step.dtype.kind == "c":
        tree["optimizer/step"] = step.astype(np.complex64)
    path = saved(Content(tree, content.metadata), tmp_path, name)
    refused(path, tmp_path, capsys, "--source-format", name, said="optimizer: step: got an array")
    assert main(["inspect", str(path), "--source-format", name]) == 0
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["seven", 1j, [1], float("nan")])
def test_the_step_beside_the_optimizer_counts_where_it_does_not(step: Any, tmp_path: Path, capsys: Any) -> None:
    torch.save({**trained("SGD", momentum=0.9), "global_step": step}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said="optimizer: step: got")
    torch.save({**trained(), "step": step}, tmp_path / "w.pt")
    state = open_checkpoint(tmp_path / "w.pt").optimizer or {}
    assert int(state["step"]) == 2


def test_many_steps(tmp_path: Path, capsys: Any) -> None:
    """2**31 steps are more than optax counts, 2**24 + 1 more than PyTorch does; both travel in flat files."""
    content = flat(trained(), tmp_path)
    for step, target, said in ((2**31, "out", "optax's int32"), (2**24 + 1, "out.pth", "PyTorch's float32")):
        path = saved(Content(content.tree | {"optimizer/step": np.array(step)}, content.metadata), tmp_path, "npz")
        assert main(["convert", str(path), str(tmp_path / target)]) == 2
        assert said in capsys.readouterr().err
        assert main(["convert", str(path), str(tmp_path / "out.safetensors"), "--force"]) == 0
        assert int((open_checkpoint(tmp_path / "out.safetensors").optimizer or {})["step"]) == step
    assert main(["convert", str(path), str(tmp_path / "x.npz"), "--steps", "-3"]) == 2


# ---- which optimizer


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", [name for name in (*OTHERS, "timm") if name != "Muon"])  # it takes matrices alone
def test_other_classes_are_refused(kind: str, tmp_path: Path, capsys: Any) -> None:
    if kind in ("LBFGS", "SparseAdam"):
        whole = trained("Adam")
        table = {"func_evals": 1, "n_iter": 1} if kind == "LBFGS" else {"step": 1} | dict.fromkeys(TENSORS)
        whole["optimizer"]["state"] = {0: table}
        options = {"lr": 1, "history_size": 3} if kind == "LBFGS" else {"lr": 1, "betas": (0.9, 0.99), "eps": 1e-8}
        group = whole["optimizer"]["param_groups"][0]
        whole["optimizer"]["param_groups"] = [{**options, "params": group["params"]}]
    elif kind == "timm":
        whole = trained("RMSprop", momentum=0.9)
        whole["optimizer"]["param_groups"][0] |= {"lr_in_momentum": True}
    else:
        whole = trained(kind)
    torch.save(whole, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said=f"expected the state of {', '.join(CLASSES)}")
    assert main(["inspect", str(tmp_path / "w.pt")]) == 0
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out.npz"), OUT]) == 0


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("layout", ["nnx", "linen"])
def test_known_classes_travel(name: str, layout: str, tmp_path: Path) -> None:
    kind, options = VARIANTS[name].form.torch, VARIANTS[name].options
    torch.save({**trained(kind, **options), "step": 2}, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.npz", to=layout)
    convert(tmp_path / "w.npz", tmp_path / "back.pt")
    assert same(
        open_checkpoint(tmp_path / "back.pt").optimizer or {}, open_checkpoint(tmp_path / "w.pt").optimizer or {}
    )
    tuned = getattr(torch.optim, kind)(network().parameters(), lr=1, **options)
    tuned.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True)["optimizer"])
    for p in (params := tuned.param_groups[0]["params"]):
        p.grad = torch.ones_like(p)
    tuned.step()
    assert len(tuned.state) == len(params)


# ---- tables of a foreign shape

NUMBERS = list(range(26))


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": [1]}, "state: got list"),
        ({"state": {0: [1]}}, "expected a table for each parameter's number"),
        ({"param_groups": {"a": 1}}, "param_groups: got dict"),
        ({"param_groups": [1]}, "param_groups: got list, expected a list of tables"),
        ({"param_groups": [{"params": "0123"}]}, "params: got '0123'"),
        ({"param_groups": [{"params": [[0]]}]}, "params: got list"),
        ({"param_groups": [{"params": [2.5]}]}, "params: got list"),
        ({"param_groups": [{"params": [0, 0]}]}, "parameter 0 is in the groups twice"),
        ({"param_groups": [{"params": NUMBERS, 3: 4}]}, "got the option 3, expected text"),
        ({"param_groups": [{"params": NUMBERS, "param_names": 7}]}, "param_names: got 7"),
        ({"param_groups": [{"params": NUMBERS, "param_names": [7] * 26}]}, "param_names: got list"),
        ({"param_groups": [{"params": NUMBERS, "param_names": ["fc.bias"] * 26}]}, "without names"),
        ({"param_groups": [{"params": NUMBERS, "betas": 0, "amsgrad": "no"}]}, "option amsgrad: got str"),
        ({"param_groups": [{"params": NUMBERS, "betas": 0, "amsgrad": True}]}, "max_exp_avg_sq: missing"),
        ({"param_groups": [{"params": NUMBERS, "lr": 0.1}]}, f"expected the state of {', '.join(CLASSES)}"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tables_that_pytorch_does_not_write(change: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    whole = trained()
    whole["optimizer"] |= change
    torch.save(whole, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said=said)
    assert main(["inspect", str(tmp_path / "w.pt")]) == 0
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out.npz"), OUT]) == 0


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ([{"state": {}}, {"state": {}}], "got 2 states, expected one"),
        ({"step": 1, "exp_avg": {"fc.bias": 3}}, "exp_avg/fc.bias: got 3, expected a tensor"),
        ({"step": 1, "a/b": {"fc.bias": torch.ones(10)}}, "got a tensor named 'a/b'"),
        ({"step": 1, "exp_avg": {"fc": {"bias": torch.ones(10)}, "fc.bias": torch.ones(10)}}, "there twice"),
        ({"count": torch.tensor(1), "tensors": {7: {"fc.bias": torch.ones(10)}}}, "got a tensor named 7"),
        ({"count": torch.tensor(1), "tensors": torch.ones(1)}, "tensors: got an array (1,)"),
        ({"count": torch.tensor(1), "mu": {"fc.bias": torch.ones(10)}, "nu": 5}, "exp_avg_sq: got 5, expected a table"),
        ({"count": torch.tensor(1), "mu": {"fc.bias": torch.ones(10)}}, "not part of a known state"),
        ({"0": {"count": torch.tensor(1)}, "1": {"count": torch.tensor(2)}}, "counts 1, 2 steps at once"),
        ({"mini_step": 1, "gradient_step": 1, "inner_opt_state": {}, "acc_grads": {}}, "1 gradients wait"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_trees_that_no_framework_writes(state: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    net = {name: torch.from_numpy(np.array(array)) for name, array in noise().items()}
    torch.save({"model": net, "optimizer": state}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said=said)
    assert main(["inspect", str(tmp_path / "w.pt")]) == 0


def test_the_name_of_an_optimizer_is_no_state(tmp_path: Path) -> None:
    net = {name: torch.from_numpy(np.array(array)) for name, array in noise().items()}
    torch.save({"model": net, "optimizer": "adam", "step": "last"}, tmp_path / "w.pt")
    found = open_checkpoint(tmp_path / "w.pt")
    assert found.optimizer is None
    assert "optimizer: left out: got str, expected a state" in found.notes


# ---- metadata


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": "{"}, "metadata optimizer: got '{', expected JSON"),
        ({"optimizer": "7"}, "expected a list of groups"),
        ({"optimizer": "[7]"}, "expected a list of groups"),
        ({"optimizer": '[{"param_names": 3}]'}, "expected a list of groups"),
        ({"optimizer": '[{"param_names": ["nothing"]}]'}, "nothing: the network has no such parameter"),
        ({"optimizer": "[" * 10_000}, "metadata optimizer: got"),
        ({"stateless": '{"a": 1}'}, "metadata stateless: got dict"),
        ({"stateless": "[1]"}, "metadata stateless: got list"),
        ({"stateless": '["nothing"]'}, "metadata stateless: nothing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_metadata_say_of_the_optimizer(change: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    content = flat(trained(), tmp_path)
    content.metadata |= change
    path = saved(content, tmp_path, "npz")
    refused(path, tmp_path, capsys, said=said)
    open_checkpoint(path, weights_only=True)
    bare = {name: array for name, array in content.tree.items() if not name.startswith("optimizer/")}
    open_checkpoint(saved(Content(bare, content.metadata), tmp_path, "npz"))  # there the metadata are somebody else's


RULES = "".join(
    f'[[layer]]\nsource = "{torch}"\ntarget = "{flax}"\ntype = "{kind}"\n{more}'
    for torch, flax, kind, more in (("bn", "norm", "batch_norm", ""), ("at", "attn", "attention", "heads = 2\n"))
)


def own_network(path: Path, **changes: Any) -> dict[str, Any]:
    """A checkpoint of a network that rules describe, and the rules."""
    (path / "rules.toml").write_text(RULES)
    net = torch.nn.ModuleDict({"bn": torch.nn.BatchNorm1d(4), "at": torch.nn.MultiheadAttention(4, 2)})
    tuned = torch.optim.Adam(net.named_parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    tuned.step()
    return {"model": net.state_dict() | changes, "optimizer": tuned.state_dict()}


def in_nnx(path: Path, whole: dict[str, Any]) -> Content:
    torch.save(whole, path / "w.pth")
    assert main(["convert", str(path / "w.pth"), str(path / "w.npz"), "--rules", str(path / "rules.toml")]) == 0
    (path / "w.pth").unlink()
    return formats.read(path / "w.npz")


COUNTER = "bn.num_batches_tracked"


@pytest.mark.parametrize(
    ("counters", "said"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected a table of whole numbers"),
        (f'{{"{COUNTER}": 2.5}}', "expected a table of whole numbers"),
        (f'{{"{COUNTER}": NaN}}', "expected a table of whole numbers"),
        (f'{{"{COUNTER}": true}}', "expected a table of whole numbers"),
        (f'{{"{COUNTER}": {2**63}}}', "expected a table of whole numbers"),
        ('{"bm.num_batches_tracked": 1}', "missing; the file says it of other"),
    ],
)
def test_counters_in_the_metadata(counters: str, said: str, tmp_path: Path, capsys: Any) -> None:
    content = in_nnx(tmp_path, own_network(tmp_path))
    assert json.loads(content.metadata["counters"]) == {COUNTER: 0}
    path = saved(Content(content.tree, content.metadata | {"counters": counters}), tmp_path, "npz")
    capsys.readouterr()
    refused(path, tmp_path, capsys, "--rules", str(tmp_path / "rules.toml"), said=said)


def test_counters_of_every_size(tmp_path: Path, capsys: Any) -> None:
    for count in (-(2**63), 2**63 - 1):
        content = in_nnx(tmp_path, own_network(tmp_path, **{COUNTER: torch.tensor(count)}))
        assert json.loads(content.metadata["counters"]) == {COUNTER: count}
        options = ["--rules", str(tmp_path / "rules.toml"), "--force"]
        assert main(["convert", str(tmp_path / "w.npz"), str(tmp_path / "back.pth"), *options]) == 0
        assert int(torch.load(tmp_path / "back.pth", weights_only=True)["model"][COUNTER]) == count
        (tmp_path / "w.npz").unlink()
    for wrong in (2.5, float("nan")):
        torch.save(own_network(tmp_path, **{COUNTER: torch.tensor(wrong)}), tmp_path / "w.pt")
        capsys.readouterr()
        refused(tmp_path / "w.pt", tmp_path, capsys, *options[:2], said=f"{COUNTER}: got an array () of float32")


# ---- complete


@pytest.mark.sample(3)
@pytest.mark.parametrize("lost", [("exp_avg_sq",), TENSORS], ids=["one", "both"])
@pytest.mark.parametrize(("name", "layout"), [("npz", "torch"), ("npz", "nnx"), ("orbax", "nnx"), ("msgpack", "linen")])
def test_a_file_that_lacks_a_parameter_is_refused(
    name: str, layout: str, lost: Any, tmp_path: Path, capsys: Any
) -> None:
    torch.save(trained(), tmp_path / "w.pth")
    path = tmp_path / f"w{suffix(FORMATS[name])}"
    convert(tmp_path / "w.pth", path, to=layout, format=name)
    content = formats.read(path, name)
    (tmp_path / "w.pth").unlink()
    for slot in lost:
        tree: Any = content.tree
        if name == "npz":
            del tree[f"optimizer/{slot}/fc.bias"]
        else:
            del tree["opt_state"]["tensors"][slot]["fc"]["bias"]
    again = saved_again(path, content, name)
    refused(again, tmp_path, capsys, "--source-format", name, said="exp_avg_sq: missing from the state for fc.bias")


def saved_again(path: Path, content: Content, name: str) -> Path:
    if path.is_dir():
        new = path.with_name("again")
        formats.write(new, content, FORMATS[name])
        return new
    path.unlink()
    formats.write(path, content, FORMATS[name])
    return path


def test_half_a_state_in_pytorchs_file(tmp_path: Path, capsys: Any) -> None:
    for left, said in (
        (("step", "exp_avg"), "exp_avg_sq: missing from the state for layer1.0.weight"),
        (("step",), "tensors of layer1.0.weight: missing"),
        (TENSORS, "step of layer1.0.weight: missing"),
    ):
        whole = trained()
        table = whole["optimizer"]["state"][0]
        whole["optimizer"]["state"][0] = {key: table[key] for key in left}
        torch.save(whole, tmp_path / "w.pt")
        refused(tmp_path / "w.pt", tmp_path, capsys, said=said)
    whole = trained("Adagrad")
    del whole["optimizer"]["state"][0]
    torch.save(whole, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", tmp_path, capsys, said="sum: missing from the state for layer1.0.weight")


def test_a_part_of_a_tensor_is_refused(tmp_path: Path, capsys: Any) -> None:
    """Flax keeps query, key and value apart, PyTorch in one tensor."""
    content = in_nnx(tmp_path, own_network(tmp_path))
    names = [name for name in content.tree if name.startswith("optimizer/") and "query.kernel" in name]
    assert len(names) == 2
    path = saved(Content({n: a for n, a in content.tree.items() if n not in names}, content.metadata), tmp_path, "npz")
    capsys.readouterr()
    options = ["--rules", str(tmp_path / "rules.toml")]
    refused(path, tmp_path, capsys, *options, said="exp_avg/at.in_proj_weight: a part of it is missing")


def test_a_state_of_a_wider_type_is_kept_and_said(tmp_path: Path) -> None:
    whole = trained()
    table = whole["optimizer"]["state"][0]
    table["exp_avg"] = torch.full(table["exp_avg"].shape, 1e300, dtype=torch.float64)
    torch.save(whole, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "w.npz", to="linen")
    found = open_checkpoint(tmp_path / "w.npz")
    assert found.optimizer is not None
    assert found.optimizer["exp_avg/layer1.0.weight"].ravel()[0] == 1e300
    assert any("exp_avg/layer1.0.weight: of a wider type than the parameter" in note for note in found.notes)


# ---- groups


@pytest.mark.parametrize(("name", "layout"), [("safetensors", "torch"), ("npz", "nnx"), ("orbax", "linen")])
def test_groups_and_parts_of_a_network_travel(name: str, layout: str, tmp_path: Path) -> None:
    """Amsgrad in the second group alone, and parameters that no group has."""
    net = network()
    named = list(net.named_parameters())
    groups = [{"params": named[2:20]}, {"params": named[20:], "amsgrad": True}]
    tuned = torch.optim.Adam(groups, lr=0.25)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    tuned.step()
    torch.save({"model": net.state_dict(), "optimizer": tuned.state_dict()}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "there", to=layout, format=name)
    convert(tmp_path / "there", tmp_path / "back.pth", source_format=name)
    first, last = (torch.load(tmp_path / f, weights_only=True)["optimizer"] for f in ("w.pth", "back.pth"))
    assert [g["param_names"] for g in last["param_groups"]] == [g["param_names"] for g in first["param_groups"]]
    assert first["param_groups"] == last["param_groups"]
    assert first["state"].keys() == last["state"].keys()
    for number, table in first["state"].items():
        assert table.keys() == last["state"][number].keys()
        assert all(torch.equal(value, last["state"][number][slot]) for slot, value in table.items())


def test_states_by_names_instead_of_numbers(tmp_path: Path) -> None:
    """As `torch.distributed.checkpoint.state_dict` writes them: names in the place of numbers, in any order."""
    whole = trained()
    expected = whole["optimizer"]
    names = expected["param_groups"][0].pop("param_names")
    group = {**expected["param_groups"][0], "params": names[::-1]}
    torch.save(whole, tmp_path / "w.pt")
    named = {"state": {names[n]: table for n, table in expected["state"].items()}, "param_groups": [group]}
    torch.save({**whole, "optimizer": named}, tmp_path / "x.pt")
    assert same(open_checkpoint(tmp_path / "x.pt").optimizer or {}, open_checkpoint(tmp_path / "w.pt").optimizer or {})


# ---- optax's own states in files

MAKERS = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "rmsprop": lambda: optax.rmsprop(0.1),
    "centered": lambda: optax.rmsprop(0.1, centered=True),
    "adagrad": lambda: optax.adagrad(0.1),
    "schedule": lambda: optax.adam(optax.exponential_decay(0.1, 1, 0.9)),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "multi-steps": lambda: optax.MultiSteps(optax.adam(0.1), 1).gradient_transformation(),
    "masked": lambda: optax.masked(optim.adam(), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    "two": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.adamw(0.2)},
        lambda params: jax.tree.map(lambda p: "a" if p.ndim > 1 else "b", params),
    ),
}
MAKERS |= {name: partial(getattr(optax, name), 0.1) for name in OPTAX if " " not in name and name not in MAKERS}


@functools.cache
def variables() -> Any:
    return ports.create(NAME, "linen", seed=None)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", MAKERS)
def test_optax_states_in_msgpack(name: str, tmp_path: Path) -> None:
    """What the file says is what the live state says."""
    module, tree = variables()
    steps, rng = int(name != "multi-steps"), np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf: (rng.random(leaf.shape) if leaf.dtype.kind == "f" else np.array(steps)).astype(leaf.dtype),
        MAKERS[name]().init(tree["params"]),
    )
    whole = {**tree, "opt_state": flax.serialization.to_state_dict(state), "step": steps}
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes(whole))
    found = open_checkpoint(tmp_path / "w.msgpack")
    expected = optimizer.read(state, (module, tree), steps)
    assert same(found.optimizer or {}, expected)
    convert(tmp_path / "w.msgpack", tmp_path / "back.pth")
    assert same(open_checkpoint(tmp_path / "back.pth").optimizer or {}, expected)


@pytest.mark.parametrize("name", [n for n in ("lion", "amsgrad", "adadelta", "rprop") if n not in OPTAX] + ["rmsprop"])
def test_other_optax_states_in_msgpack(name: str, tmp_path: Path, capsys: Any) -> None:
    _, tree = variables()
    tx = optax.rmsprop(0.1, momentum=0.9) if name == "rmsprop" else getattr(optax, name)(0.1)
    state = tx.init(tree["params"])
    whole = {**tree, "opt_state": flax.serialization.to_state_dict(state), "step": 0}
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes(whole))
    refused(tmp_path / "w.msgpack", tmp_path, capsys, said=OUT)
    assert main(["inspect", str(tmp_path / "w.msgpack")]) == 0


def test_nnx_own_optimizer_in_orbax(tmp_path: Path) -> None:
    net = ports.create(NAME, "nnx", seed=None)
    tuned = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    tuned.update(net, jax.tree.map(jnp.ones_like, nnx.state(net, nnx.Param)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "w", {"model": nnx.state(net), "optimizer": nnx.state(tuned)})
    found = open_checkpoint(tmp_path / "w")
    assert same(found.optimizer or {}, optimizer.read(tuned, net))


# ---- anything at all

CHANGES = 90

VALUES: list[Any] = [
    *BAD_STEPS,
    0,
    1,
    "",
    "step",
    "exp_avg",
    "params",
    np.float32(3),
    np.ones((2, 3)),
    np.zeros((0, 4)),
]
VALUES += [
    [],
    {},
    [{}],
    {"step": 1},
    {"mu": {}, "nu": {}, "count": 1},
    {1: {2: 3}},
    b"x",
    (1, "a"),
    {"param_groups": []},
]


def mutated(tree: Any, rng: random.Random) -> None:
    """Replace, remove, add or rename one thing somewhere in a tree, in place."""
    nodes = [tree]
    for node in nodes:
        nodes += [v for v in (node.values() if isinstance(node, dict) else node) if isinstance(v, dict | list) and v]
    node = rng.choice([one for one in nodes if one])
    value = copy.deepcopy(rng.choice(VALUES))
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    action = rng.choice(["replace", "remove", "add", "rename"])
    if action == "replace":
        node[key] = value
    elif action == "remove":
        del node[key]
    elif isinstance(node, list):
        node.append(value)
    else:
        new = rng.choice(["step", "state", "exp_avg", "mu", "count", "opt_state", "fc.bias", "a/b", 7, None, (1,)])
        node[new] = value if action == "add" else node.pop(key)


def starts(path: Path) -> list[tuple[str, Content]]:
    """States of every form, each with the name of a file that holds such a one."""
    small = {name: np.ones_like(array) for name, array in noise().items()}
    names = [name for name in small if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    moments = {slot: {n: small[n] for n in names} for slot in TENSORS}
    tables = {i: {"step": np.float32(2), **dict.fromkeys(TENSORS, small[n])} for i, n in enumerate(names)}
    group = {"params": list(range(len(names))), "betas": [0.9, 0.99], "amsgrad": False, "param_names": list(names)}
    torch_state = {"state": tables, "param_groups": [group]}
    adam = {"count": np.array(2), "mu": moments["exp_avg"], "nu": moments["exp_avg_sq"]}
    flat_state = {f"optimizer/{slot}/{n}": a for slot, arrays in moments.items() for n, a in arrays.items()}
    metadata = {"optimizer": json.dumps([group]), "stateless": json.dumps(names[:1]), "counters": '{"a": 1}'}
    return [
        ("w.pt", Content({"model": small, "optimizer": torch_state, "step": 3})),
        ("w.pt", Content({"model": small, "optimizer": {"step": np.array(2), **moments}})),
        ("w.msgpack", Content({"model": small, "opt_state": {"0": adam, "1": {"count": np.array(2)}}})),
        ("w.msgpack", Content({"model": small, "optimizer": {"step": np.array(2), "opt_state": {"0": adam}}})),
        ("w.msgpack", Content({"model": small, "opt_state": {"count": np.array(2), "tensors": moments}})),
        ("w.npz", Content({**small, "optimizer/step": np.array(2), **flat_state}, metadata)),
    ]


def repr_line(value: Any) -> str:
    return ascii(value).replace("\n", "")


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def test_whatever_a_state_holds_one_line_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed states: each is read or refused with a line, by `inspect` too; what is read can be written."""
    rng, counts = random.Random(0), {"read": 0, "refused": 0}
    whole = starts(tmp_path)
    for name, content in whole:
        (tmp_path / name).touch()
        monkeypatch.setattr(formats, "read", lambda *_, content=content, **__: content)
        assert open_checkpoint(tmp_path / name).optimizer
    monkeypatch.setenv(DEBUG, "1")  # the states' own checks, not the boundary around them, must find every fault
    monkeypatch.setattr(formats, "write", lambda path, *_, **__: path.touch())
    for i in range(CHANGES):
        name, content = whole[i % len(whole)]
        tree, metadata = duplicate(content.tree), dict(content.metadata)
        if name == "w.npz" and i % 12 == 5:
            mutated(parsed := {key: json.loads(text) for key, text in metadata.items()}, rng)
            metadata = {str(key): json.dumps(value, default=repr_line, skipkeys=True) for key, value in parsed.items()}
        elif name == "w.npz":
            key = rng.choice([key for key in tree if key.startswith("optimizer/")])
            value = np.array(rng.choice([v for v in VALUES if not isinstance(v, dict | list | tuple | str | bytes)]))
            tree[rng.choice([key, "optimizer/exp_avg", "optimizer/", "optimizer/step/x", "optimizer//"])] = value
        else:
            part = next(part for key, part in tree.items() if key.startswith("opt"))
            for _ in range(rng.choice([1, 1, 2, 3])):
                if part:
                    mutated(part, rng)
        changed = Content(tree, metadata, Source(tmp_path / name))
        monkeypatch.setattr(formats, "read", lambda *_, changed=changed, **__: changed)
        at, to = tmp_path / name, ("torch", "nnx", "linen")[i % 3]
        target = tmp_path / ("out.pth", "out.npz", "out.msgpack")[i % 5 % 3]
        calls = [partial(open_checkpoint, at), partial(inspect, at), partial(convert, at, target, to=to, force=True)]
        said = [refusal(call) for call in calls]
        counts["refused" if said[0] else "read"] += 1
        assert "".join(said).isprintable(), said
    assert min(counts.values()) > CHANGES / 10, counts


def duplicate(tree: Any) -> Any:
    """A copy whose tables and lists are new; arrays are shared."""
    if isinstance(tree, dict):
        return {key: duplicate(value) for key, value in tree.items()}
    return [duplicate(value) for value in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("name", [row.name for row in FORMATS.values() if not row.nested])
def test_a_tensor_of_the_network_under_the_name_of_a_state(name: str, tmp_path: Path) -> None:
    """It was written, and read as the state of an optimizer."""
    tree = {"a": np.ones(2), "optimizer/step": np.ones((2, 3))}
    formats.write(tmp_path / "w.msgpack", Content(tree), FORMATS["msgpack"])
    with pytest.raises(UserError, match=f"optimizer/step: is what {name} calls the steps of an optimizer"):
        convert(tmp_path / "w.msgpack", tmp_path / "o", format=name, to="torch")
    with pytest.raises(UserError, match=f"optimizer/step: is what {name} calls the steps of an optimizer"):
        save(tmp_path / "o", tree, format=name)
    assert not (tmp_path / "o").exists()


def test_a_state_of_adam_without_tensors_stays_adam_s() -> None:
    """Adam has all options of Adamax and `amsgrad`; SparseAdam has fewer than either."""
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "params": [0]}
    row = optimizer_table.of_groups([group], ())
    assert row is not None
    assert row.name == "Adam"
    del group["amsgrad"]
    row = optimizer_table.of_groups([group], ())
    assert row is not None
    assert row.name == "Adamax"
    del group["weight_decay"]
    with pytest.raises(UserError, match="expected the state of SGD, Adam, AdamW, Adamax"):
        optimizer_table.of_groups([group], ())

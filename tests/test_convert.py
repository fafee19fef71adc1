"""`parity convert`: every format into every other with every layout, with and without the state of an optimizer."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
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
from flax import nnx, traverse_util
from small import BASIC_NET, GROUPED_NET, POOLED_NET, PREACT_NET
from test_formats import digest, same, suffix

import ports
from parity.commands.cli import main
from ports import optim
from ports.families import KNOWN, NETWORKS, layers
from ports.family import joined
from ports.resnet.spec import Stage
from ports.weights import Default, Rename, WeightsError, convert, load, optimizer
from ports.weights.checkpoints.checkpoint import open_checkpoint
from ports.weights.files import formats
from ports.weights.files.formats import FORMATS, Content
from ports.weights.known.dialects import DIALECTS, TARGETS, mapping
from ports.weights.known.recognise import recognise

Weights = dict[str, np.ndarray]
NAME = "tutorial_resnet"
CIFAR = "resnet20-12fca82f.th"


def noise(name: str = NAME, seed: int = 0) -> Weights:
    """A network's weights made of random bits; its counters are numbers of batches."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for layer in layers(KNOWN[name]):
        for leaf, shape in layer.shapes.items():
            count = int(np.prod(shape))
            bits = np.frombuffer(rng.bytes(4 * count), np.float32).reshape(shape).copy()
            counter = leaf == "num_batches_tracked"
            weights[joined(layer.torch, leaf)] = np.array(rng.integers(2**31)) if counter else bits
    return weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PyTorch's checkpoint of a training: Adam's state, and a parameter that never got a gradient."""
    net = ports.create(NAME, "pytorch", seed=None)
    with torch.no_grad():
        for name, array in noise().items():
            net.state_dict()[name].copy_(torch.from_numpy(np.array(array)))
    tuned = torch.optim.Adam(net.parameters(), lr=0.25, betas=(0.5, 0.75))
    rng = torch.Generator().manual_seed(0)
    for name, p in net.named_parameters():
        if name != "fc.bias":
            moments = {key: torch.randn(p.shape, generator=rng) for key in ("exp_avg", "exp_avg_sq")}
            tuned.state[p] = {"step": torch.tensor(7.0), **moments}
    path = tmp_path_factory.mktemp("trained") / "w.pth"
    torch.save({"model": net.state_dict(), "optimizer": tuned.state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "w.pth"
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in noise().items()}, path)
    return path


PLACES = [(row, to) for row, to in product(FORMATS.values(), TARGETS) if (row.name, to) != ("torch", "torch")]
SHORT = [pair for pair in PLACES if pair[0].name != "orbax"]


@pytest.mark.sample(8)
@pytest.mark.parametrize("optimized", [False, True], ids=["weights", "optimizer"])
@pytest.mark.parametrize(("row", "to"), PLACES, ids=lambda v: getattr(v, "name", v))
def test_there_and_back(row: Any, to: str, optimized: bool, plain: Path, trained: Path, tmp_path: Path) -> None:
    """From PyTorch's file into a format and layout, and back into PyTorch's: every bit, every count."""
    source = trained if optimized else plain
    there, back = tmp_path / f"there{suffix(row)}", tmp_path / "back.pth"
    convert(source, there, to=to, format=row.name)
    convert(there, back, source_format=row.name)
    first, last = open_checkpoint(source), open_checkpoint(back)
    assert first.found is not None
    assert first.found.network == NAME
    assert same(last.weights, noise())
    assert (first.optimizer is not None) is optimized
    if first.optimizer is not None and last.optimizer is not None:
        expected = dict(first.optimizer)
        if row.name == "msgpack" and to != "torch":  # no room to say that it never got a gradient
            for slot in ("exp_avg", "exp_avg_sq"):
                expected[f"{slot}/fc.bias"] = np.zeros_like(noise()["fc.bias"])
        assert same(last.optimizer, expected)
        state = torch.load(back, weights_only=True)["optimizer"]
        original = torch.load(source, weights_only=True)["optimizer"]
        if row.name != "msgpack":
            assert state["state"].keys() == original["state"].keys()
            group, before = state["param_groups"][0], original["param_groups"][0]
            assert {key: group[key] for key in before} == before


@pytest.mark.sample(1)
@pytest.mark.parametrize("optimized", [False, True], ids=["weights", "optimizer"])
def test_every_format_into_every_other(optimized: bool, plain: Path, trained: Path, tmp_path: Path) -> None:
    """A walk through all formats and layouts in another order: what arrives is what set out."""
    at, name = trained if optimized else plain, "torch"
    order = np.random.default_rng(0).permutation(len(SHORT) * 2) % len(SHORT)
    steps = [(row, to) for row, to in (SHORT[i] for i in order) if not (optimized and row.name == "msgpack")]
    for i, (row, to) in enumerate(steps):
        new = tmp_path / f"{i}{suffix(row)}"
        convert(at, new, to=to, source_format=name, format=row.name)
        at, name = new, row.name
    last = open_checkpoint(at, format=name)
    assert same(last.weights, noise())
    if optimized:
        assert last.optimizer is not None
        assert same(last.optimizer, open_checkpoint(trained).optimizer or {})


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_two_runs_give_the_same_bytes(row: Any, trained: Path, tmp_path: Path) -> None:
    before = digest(trained)
    for name in ("one", "two"):
        convert(trained, tmp_path / f"{name}{suffix(row)}", format=row.name)
    assert digest(tmp_path / f"one{suffix(row)}") == digest(tmp_path / f"two{suffix(row)}")
    assert digest(trained) == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("to", TARGETS)
def test_types_are_kept(to: str, dtype: str, tmp_path: Path) -> None:
    kind = formats.dtype_of(dtype)
    source = {n: a if a.dtype.kind == "i" else np.ones(a.shape, kind) for n, a in noise().items()}
    ports.weights.save(tmp_path / "a.safetensors", source)
    convert(tmp_path / "a.safetensors", tmp_path / "b.npz", to=to)
    convert(tmp_path / "b.npz", tmp_path / "c.safetensors")
    assert same(load(tmp_path / "c.safetensors"), source)


def test_mixed_types_are_kept_and_said(tmp_path: Path) -> None:
    source = {n: np.ones_like(a, np.float16) if n.endswith("conv1.weight") else a for n, a in noise().items()}
    ports.weights.save(tmp_path / "a.safetensors", source)
    result = convert(tmp_path / "a.safetensors", tmp_path / "b.npz", to="linen")
    assert "types are mixed: float16, float32; each is kept" in result.notes
    assert same(load(tmp_path / "b.npz"), source)


@pytest.mark.sample(14)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_of_a_description(name: str) -> None:
    """Names, shapes and order are those of the PyTorch network."""
    from ports.building import pytorch

    state = pytorch.skeleton(NETWORKS[name]).state_dict()
    found = {tensor: shape for layer in layers(NETWORKS[name]) for tensor, shape in layer.tensors.items()}
    assert list(found.items()) == [(n, tuple(t.shape)) for n, t in state.items()]


FEW = ["resnet50d", "wrn_40_4", "tutorial_net", "tutorial_resnet", "vit_b_32"]


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", FEW)
def test_where_flax_networks_keep_their_variables(name: str) -> None:
    net = nnx.eval_shape(lambda: ports.create(name, "nnx", seed=None))
    variables = {".".join(map(str, at)): v.get_value().shape for at, v in nnx.to_flat_state(nnx.state(net))}
    _, linen = ports.create(name, "linen", seed=None)
    arrays: Any = traverse_util.flatten_dict(linen, sep=".")
    flat = {at: a.shape for at, a in arrays.items()}
    for dialect, expected in (("nnx", variables), ("linen", flat)):
        rows = mapping(KNOWN[name], DIALECTS[dialect])
        assert {n: s for row in rows for n, s in zip(row.names, row.shapes, strict=True)} == expected


def shapes(name: str, dialect: str, **changes: Any) -> dict[str, tuple[int, ...]]:
    spec = dataclasses.replace(KNOWN[name], **changes)
    return {n: s for e in mapping(spec, DIALECTS[dialect]) for n, s in zip(e.names, e.shapes, strict=True)}


CASES = [(n, d) for n, d in product(KNOWN, ("torchvision", "nnx"))]
CASES += [(n, d) for n in ("resnet18", "resnext50_32x4d") for d in ("transformers", "flax-imagenet", "linen")]
CASES += [(n, d) for n, d in product(("cifar_resnet20", "cifar_resnet56_b"), ("cifar", "cifar-hwio", "linen"))]
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    (name, dialect, changes)
    for name, dialect in (("resnet18", "torchvision"), ("wrn_40_4", "linen"), ("resnet50d", "torchvision-hwio"))
    for changes in ({"num_classes": 7}, {"in_channels": 1}, {"features_only": True})
]


@pytest.mark.sample(15)
@pytest.mark.parametrize(("name", "dialect"), CASES)
def test_networks_and_dialects_are_recognised(name: str, dialect: str) -> None:
    found = recognise(shapes(name, dialect))
    assert (found.network, found.dialect, found.spec) == (name, dialect, KNOWN[name])


@pytest.mark.parametrize(("name", "dialect", "changes"), OTHERS, ids=str)
def test_other_classes_and_channels_are_recognised(name: str, dialect: str, changes: dict[str, Any]) -> None:
    found = recognise(shapes(name, dialect, **changes))
    assert (found.network, found.dialect) == (name, dialect)
    assert found.spec == dataclasses.replace(KNOWN[name], **changes)
    assert found.notes


@pytest.mark.parametrize("dialect", ["cifar", "transformers", "flax-imagenet", "torchvision-hwio", "tutorial"])
def test_dialects_into_the_torch_form(dialect: str, tmp_path: Path) -> None:
    name = {"cifar": "cifar_resnet20_b", "tutorial": NAME, "torchvision-hwio": "cifar_resnet20"}.get(
        dialect, "resnet18"
    )
    weights = noise(name)
    rows = mapping(KNOWN[name], DIALECTS[dialect])
    file = {n: np.array(a) for e in rows for n, a in zip(e.names, e.from_torch(weights[e.torch]), strict=True)}
    if dialect == "flax-imagenet":
        file = {n: a for n, a in file.items() if not n.endswith("num_batches_tracked")}
    if dialect == "tutorial":
        file["layer3.shortcut.0.weight"] = np.ones((1, 1), np.float32)
    ports.weights.save(tmp_path / "a.safetensors", file)
    result = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert result.source.found is not None
    assert result.source.found.dialect == dialect
    expected = {
        n: np.zeros_like(a) if dialect == "flax-imagenet" and n.endswith("tracked") else a for n, a in weights.items()
    }
    assert same(load(tmp_path / "b.safetensors"), expected)
    assert any("SAME" in note for note in result.notes) is (dialect == "flax-imagenet")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: f"module.{n}",
        lambda n: f"_orig_mod.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: f"_orig_mod.module.{n}",
        lambda n: n.replace("layer3.", "layer3._orig_mod."),
        lambda n: n.replace("layer3.", "layer3.module."),
        lambda n: f"backbone.{n}",
        lambda n: f"model.net.{n}",
        lambda n: n.replace(".", "/"),
    ],
    ids=["parallel", "compiled", "both", "other-order", "compiled-within", "parallel-within", "prefix", "two", "slash"],
)
def test_what_wraps_names_is_taken_off(wrap: Any, tmp_path: Path) -> None:
    ports.weights.save(tmp_path / "a.safetensors", {wrap(name): array for name, array in noise().items()})
    convert(tmp_path / "a.safetensors", tmp_path / "b.npz")
    assert same(load(tmp_path / "b.npz"), noise())


def test_names_may_be_kept(tmp_path: Path) -> None:
    """Somebody's own module may be called `module`."""
    ports.weights.save(tmp_path / "a.npz", {"a.module.w": np.ones(1), "a.module.b": np.ones(1), "c": np.ones(1)})
    assert list(load(tmp_path / "a.npz")) == ["a.w", "a.b", "c"]
    assert list(load(tmp_path / "a.npz", strip=False)) == ["a.module.w", "a.module.b", "c"]


def test_two_candidates_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from ports.weights.known import recognise as module

    twin = dataclasses.replace(KNOWN[NAME], name="twin", in_channels=4)
    monkeypatch.setattr(module, "KNOWN", {NAME: KNOWN[NAME], "twin": twin})
    monkeypatch.setattr(module, "_same", lambda *_: False)
    with pytest.raises(WeightsError, match=rf"fit {NAME} \(torchvision\) or twin \(torchvision\).*--model"):
        recognise(shapes(NAME, "torchvision"))
    assert recognise(shapes(NAME, "torchvision"), "twin").network == "twin"


@pytest.mark.parametrize(
    ("key", "content"),
    [
        (None, lambda s: s),
        (None, lambda s: {"state_dict": s, "epoch": 1}),
        (None, lambda s: {"module": s}),
        (None, lambda s: {"ema": s}),
        (None, lambda s: {"model": {"module": s}}),
        ("ema", lambda s: {"model": {"other": torch.ones(1)}, "ema": s}),
        ("nets.0", lambda s: {"nets": {"0": s}}),
    ],
)
def test_nested_checkpoints(key: str | None, content: Any, tmp_path: Path) -> None:
    torch.save(content({n: torch.from_numpy(np.array(a)) for n, a in noise().items()}), tmp_path / "w.pt")
    assert same(load(tmp_path / "w.pt", key=key), noise())
    convert(tmp_path / "w.pt", tmp_path / "b.npz", key=key)
    assert same(load(tmp_path / "b.npz"), noise())


def test_a_network_of_ones_own_keeps_its_names(tmp_path: Path) -> None:
    ports.weights.save(tmp_path / "a.npz", {"my.w": np.ones((2, 3)), "b": np.zeros(1)})
    result = convert(tmp_path / "a.npz", tmp_path / "b.safetensors")
    assert any("names and layouts are taken as they are" in note for note in result.notes)
    assert same(load(tmp_path / "b.safetensors"), load(tmp_path / "a.npz"))
    with pytest.raises(WeightsError, match="not a network known here; describe your own in a file: --rules"):
        convert(tmp_path / "a.npz", tmp_path / "c", to="nnx")
    assert not (tmp_path / "c").exists()


def test_the_published_network_in_plain_orbax(shared_data: Path, tmp_path: Path) -> None:
    """827 of 10,000 wrong, through `parity convert` without further options and Orbax's own loading."""
    from parity.running.probes import MEAN, STD

    data = np.load(shared_data / "cifar10_test.npz")
    images, labels = ((data["images"] / 255 - MEAN) / STD).astype(np.float32), data["labels"]
    assert main(["convert", str(shared_data / CIFAR), str(tmp_path / "out"), "--to", "nnx"]) == 0
    net = ports.create("cifar_resnet20", "nnx", seed=None)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "out")
    state = nnx.state(net)
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(restored))
    nnx.update(net, state)
    net.eval()
    forward = nnx.jit(lambda net, x: net(x))
    predictions = np.concatenate([np.asarray(forward(net, part)) for part in np.split(images, 10)]).argmax(1)
    assert int((predictions != labels).sum()) == 827


def test_the_published_network_in_plain_flax(shared_data: Path, tmp_path: Path) -> None:
    """By Flax's own loading: bit by bit the variables for which test_cifar10.py counts 827 wrong of 10,000."""
    assert main(["convert", str(shared_data / CIFAR), str(tmp_path / "out.msgpack")]) == 0
    module, variables = ports.create("cifar_resnet20", "linen", seed=None)
    restored = flax.serialization.from_bytes(variables, (tmp_path / "out.msgpack").read_bytes())
    rules = (Rename(r"^linear\.", "fc.", why="other name"), Default("num_batches_tracked", 0, why="older"))
    expected = ports.weights.write((module, variables), load(shared_data / CIFAR), rules=rules)
    first, second = (traverse_util.flatten_dict(tree, sep=".") for tree in (restored, expected))
    assert same({n: np.asarray(a) for n, a in first.items()}, {n: np.asarray(a) for n, a in second.items()})


@pytest.mark.usefixtures("quick")
def test_optax_states_as_flax_restores_them(trained: Path, tmp_path: Path) -> None:
    """The state in msgpack is that of `ports.optim` by Flax's own functions, and the numbers are PyTorch's."""
    convert(trained, tmp_path / "w.msgpack")
    module, variables = ports.create(NAME, "linen", seed=1)
    state = optim.adam(0.1).init(variables["params"])
    tree: Any = flax.serialization.msgpack_restore((tmp_path / "w.msgpack").read_bytes())
    state = flax.serialization.from_state_dict(state, tree["opt_state"])
    params = flax.serialization.from_state_dict(variables["params"], tree["params"])
    found = optimizer.read(state, (module, {**variables, "params": params}))
    expected = open_checkpoint(trained).optimizer
    assert expected is not None
    assert int(found["step"]) == 7
    assert same({n: found[n] for n in expected}, expected)


def test_torch_restores_its_optimizer(trained: Path, tmp_path: Path) -> None:
    convert(trained, tmp_path / "w", to="nnx")
    convert(tmp_path / "w", tmp_path / "back.pth")
    net = ports.create(NAME, "pytorch", seed=None)
    tuned = torch.optim.Adam(net.parameters(), lr=1)
    tuned.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True)["optimizer"])
    assert (tuned.param_groups[0]["lr"], tuned.param_groups[0]["betas"]) == (0.25, (0.5, 0.75))
    assert net.fc.bias not in tuned.state
    assert float(tuned.state[net.fc.weight]["step"]) == 7


@pytest.mark.parametrize(
    "make", [lambda: optax.adam(0.1), lambda: optax.sgd(0.1, momentum=0.9)], ids=["adam", "momentum"]
)
@pytest.mark.usefixtures("quick")
def test_optax_own_states_are_read(make: Any, tmp_path: Path) -> None:
    _, variables = ports.create(NAME, "linen", seed=1)
    tx = make()
    state = tx.init(variables["params"])
    _, state = tx.update(jax.tree.map(jnp.ones_like, variables["params"]), state, variables["params"])
    whole = {**variables, "opt_state": flax.serialization.to_state_dict(state), "step": 1}
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.to_bytes(whole))
    found = open_checkpoint(tmp_path / "w.msgpack").optimizer
    assert found is not None
    slot = "exp_avg" if "exp_avg/fc.weight" in found else "momentum_buffer"
    assert int(found["step"]) == 1
    assert found[f"{slot}/fc.weight"].shape == noise()["fc.weight"].shape
    assert np.all(found[f"{slot}/conv1.weight" if f"{slot}/conv1.weight" in found else f"{slot}/fc.bias"] > 0)


@pytest.mark.usefixtures("quick")
def test_the_state_of_nnx_own_optimizer_is_read(tmp_path: Path) -> None:
    """As NNX's users save it: `nnx.state` of the model and of `nnx.Optimizer` in one Orbax folder."""
    net = ports.create(NAME, "nnx", seed=1)
    tuned = nnx.Optimizer(net, optax.adam(0.1), wrt=nnx.Param)
    tuned.update(net, jax.tree.map(jnp.ones_like, nnx.state(net, nnx.Param)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "w", {"model": nnx.state(net), "optimizer": nnx.state(tuned)})
    found = open_checkpoint(tmp_path / "w")
    assert found.optimizer is not None
    assert int(found.optimizer["step"]) == 1
    assert np.allclose(found.optimizer["exp_avg/fc.weight"], 0.1)
    assert same(found.weights, ports.weights.read(net))


def test_groups_of_an_optimizer(tmp_path: Path) -> None:
    """Two groups travel where the parameters have their names, and are refused where they have not."""
    net = ports.create(NAME, "pytorch", seed=0)
    named = list(net.named_parameters())
    groups = [{"params": named[1:], "weight_decay": 0.5}, {"params": named[:1], "lr": 2.0}]
    tuned = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for _, p in named:
        tuned.state[p] = {"momentum_buffer": torch.full_like(p, 3)}
    whole = {"model": net.state_dict(), "optimizer": tuned.state_dict(), "step": 11}
    torch.save(whole, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "w")
    convert(tmp_path / "w", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["step"] == 11
    assert [len(group["params"]) for group in back["optimizer"]["param_groups"]] == [len(named) - 1, 1]
    assert [group["lr"] for group in back["optimizer"]["param_groups"]] == [0.1, 2.0]
    assert back["optimizer"]["param_groups"][1]["param_names"] == [named[0][0]]
    for group in whole["optimizer"]["param_groups"]:
        del group["param_names"]
    torch.save(whole, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"in 2 groups without names.*--weights-only"):
        convert(tmp_path / "x.pth", tmp_path / "x")
    convert(tmp_path / "x.pth", tmp_path / "x", weights_only=True)


def test_names_of_an_optimizer_from_before_the_model_was_wrapped(tmp_path: Path) -> None:
    net = ports.create(NAME, "pytorch", seed=0)
    tuned = torch.optim.SGD(list(net.named_parameters()), lr=0.1, momentum=0.9)
    for _, p in net.named_parameters():
        tuned.state[p] = {"momentum_buffer": torch.full_like(p, 3)}
    wrapped = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"model": wrapped, "optimizer": tuned.state_dict()}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "back.pth", steps=5)
    state = torch.load(tmp_path / "back.pth", weights_only=True)["optimizer"]
    assert state["param_groups"][0]["param_names"] == [name for name, _ in net.named_parameters()]
    tuned.load_state_dict(state)


def test_metadata_say_where_it_comes_from(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "b.safetensors")
    about = formats.read(tmp_path / "b.safetensors").metadata
    assert about["source"] == "w.pth"
    assert about["source_sha256"] == digest_of(plain)
    assert (about["network"], about["dialect"], about["layout"]) == (NAME, "torchvision", "torch")


def digest_of(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_shards_of_a_size(plain: Path, tmp_path: Path) -> None:
    assert main(["convert", str(plain), str(tmp_path / "out"), "--shard-size", "500KB"]) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert same(load(tmp_path / "out"), noise())
    assert main(["convert", str(plain), str(tmp_path / "x"), "--shard-size", "many"]) == 2
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"])
def test_a_folder_with_one_file_of_weights(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `save_pretrained` writes it. One shard of several, without their index, is not a whole model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"no weights")
    ports.weights.save(folder / file, noise())
    assert same(load(folder), noise())
    assert main(["convert", str(folder), str(tmp_path / "out.npz")]) == 0
    assert same(load(tmp_path / "out.npz"), noise())
    (folder / file).rename(folder / f"model-00001-of-00002{Path(file).suffix}")
    capsys.readouterr()
    assert main(["convert", str(folder), str(tmp_path / "x.npz")]) == 2
    assert "expected one *.index.json" in capsys.readouterr().err


def test_a_folder_with_two_files_of_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        ports.weights.save(tmp_path / f"{name}.safetensors", noise())
    assert main(["inspect", str(tmp_path)]) == 2
    assert "got a.safetensors, b.safetensors, expected one *.index.json" in capsys.readouterr().err


def test_inspect(shared_data: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shared_data / CIFAR)]) == 0
    said = capsys.readouterr().out
    assert main(["inspect", str(trained)]) == 0
    assert "exp_avg, exp_avg_sq, 7 steps" in capsys.readouterr().out
    for text in ("torch", "cifar_resnet20", "97, ", "float32", "no num_batches_tracked", "linear.weight", "(10, 64)"):
        assert text in said


def test_inspect_reads_the_header_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose tensors are a hole of 4 GB on a disk: what is read does not depend on it."""
    import struct

    from ports.weights.checkpoints.inspection import inspect

    size = 2**32
    table = {"w": {"dtype": "F32", "shape": [2**20, 2**10], "data_offsets": [0, size]}}
    text = json.dumps(table).encode()
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    found = inspect(tmp_path / "w.safetensors")
    assert found.facts["tensors"] == f"1, {2**30:,} numbers, {size:,} bytes"


def test_inspect_says_what_is_unusual(tmp_path: Path) -> None:
    from ports.weights.checkpoints.inspection import inspect

    tensors = noise() | {"fc.bias": np.full(10, np.nan, np.float16), "fc.weight": np.zeros((10, 128), np.float32)}
    ports.weights.save(tmp_path / "a.npz", tensors)
    notes = " ".join(inspect(tmp_path / "a.npz", values=True).notes)
    for text in ("types are mixed", "NaN: ", "all zero: fc.weight"):
        assert text in notes


@pytest.mark.parametrize("spec", [BASIC_NET, GROUPED_NET, POOLED_NET, PREACT_NET], ids=lambda s: s.name)
def test_folding_gives_the_same_function(spec: Any) -> None:
    """In float64, to rounding. Before a pre-activation block stands no convolution: its first BatchNorm stays."""
    from ports.weights.known import fold

    net: Any = ports.create(spec, "pytorch", seed=0, dtype="float64")
    for tensor in net.state_dict().values():
        if tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    rows = layers(spec)
    folded, count = fold.fold(ports.weights.read(net), rows)
    first = [x for x in rows if x.role == "last.bn" or (x.role == "bn" and x.fields["i"] == 0)]
    stay = len(first) if spec.block.preactivation else 0
    assert count == sum(x.type == "batch_norm" for x in rows) - stay
    assert count > 1
    images = torch.randn(2, 3, 32, 29, dtype=torch.float64)
    port: Any = ports.create(spec, "pytorch", seed=None, dtype="float64", folded=True)
    ports.weights.write(port, folded)
    with torch.no_grad():
        whole, other = net.eval()(images), port.eval()(images)
    assert torch.linalg.norm(other - whole) < 1e-12 * torch.linalg.norm(whole)


def test_folding_from_the_command_line(tmp_path: Path) -> None:
    net = ports.create(NAME, "pytorch", seed=0)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "f.msgpack"), "--fold-batchnorm", "--check"]) == 0
    tree = flax.serialization.msgpack_restore((tmp_path / "f.msgpack").read_bytes())
    assert list(tree) == ["params"]
    assert set(tree["params"]["layer2"]["conv1"]) == {"kernel", "bias"}


@pytest.mark.usefixtures("quick")
def test_check_leaves_a_right_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network among the known ones."""
    small = dataclasses.replace(BASIC_NET, name="small", stages=(Stage(8, 1),))
    monkeypatch.setattr("ports.weights.known.recognise.KNOWN", {"small": small})
    net = ports.create(small, "pytorch", seed=0)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "out"), "--check"]) == 0
    assert (tmp_path / "out").is_dir()


def test_check_refuses_a_wrong_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A writer that loses a bit of one tensor."""
    net = ports.create(NAME, "pytorch", seed=0)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    write = formats.write

    def wrong(path: Path, content: Content, row: Any, **options: Any) -> None:
        leaves = dict(formats.flat(content.tree))
        at = next(at for at in leaves if at[-1] == "kernel")
        leaves[at] = np.array(leaves[at])
        leaves[at].flat[0] = np.nextafter(leaves[at].flat[0], 9)
        write(path, Content(formats.nested(leaves.items()), content.metadata), row, **options)

    monkeypatch.setattr(formats, "write", wrong)
    assert main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "out"), "--check"]) == 2
    assert "differ from the source; nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_the_rules_of_a_live_network_fit_what_was_converted(shared_data: Path, tmp_path: Path) -> None:
    """`load` and the rules that a caller gives still do what they did."""
    net = ports.create("cifar_resnet20", "pytorch", seed=None)
    convert(shared_data / CIFAR, tmp_path / "w.safetensors")
    ports.weights.write(net, load(tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError):
        ports.weights.write(net, load(shared_data / CIFAR), rules=[Default("num_batches_tracked", 0, why="older")])


def test_dialects_name_roles_and_fields_that_networks_have() -> None:
    """A misspelt role would never be used, and a misspelt field would blame the file."""
    found = [layer for spec in KNOWN.values() for layer in layers(spec)]
    roles = {layer.role: layer for layer in found}
    for dialect in DIALECTS.values():
        assert set(dialect.names) <= set(roles), dialect.name
        for role, template in dialect.names.items():
            assert template.format(**roles[role].fields), dialect.name

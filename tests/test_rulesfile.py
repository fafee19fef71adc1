"""Rules for anybody's own network, and weights by name: `--rules FILE`, `inspect --rules`, hf:// and torchvision://."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from flax import linen, nnx
from test_convert import noise
from test_formats import same
from torch import nn

from parity.commands.cli import main
from ports.family import Shape
from ports.weights import WeightsError, convert, load, save
from ports.weights.checkpoints.pretrained import DIGITS, fetched
from ports.weights.files import formats
from ports.weights.rules import draft, rulesfile

pytestmark = pytest.mark.usefixtures("quick")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.up = nn.LayerNorm(8), nn.Linear(8, 8)


class Torch(nn.Module):
    """A little of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(5, 8), nn.Conv1d(8, 8, 3)
        self.up_conv, self.bn = nn.ConvTranspose1d(8, 4, 3), nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(Block() for _ in range(12))
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("positions", torch.arange(4))


class FlaxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.ln, self.dense = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)


class Flax(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed, self.conv = nnx.Embed(5, 8, rngs=rngs), nnx.Conv(8, 8, 3, rngs=rngs)
        self.up_conv = nnx.ConvTranspose(8, 4, 3, transpose_kernel=True, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.layers = nnx.List([FlaxBlock(rngs) for _ in range(12)])
        self.gain = nnx.Param(jnp.zeros(3))


RULES = """
source = "torch"
target = "nnx"
[[layer]]
source = "embed"
target = "embed"
type = "embedding"
[[layer]]
source = "conv"
target = "conv"
type = "conv"
[[layer]]
source = "up_conv"
target = "up_conv"
type = "conv_transpose"
transpose_kernel = true
[[layer]]
source = "bn"
target = "bn"
type = "batch_norm"
[[layer]]
source = "blocks.{}.attention"
target = "layers.{}.attn"
type = "attention"
heads = 2
[[layer]]
source = "blocks.{}.norm"
target = "layers.{}.ln"
type = "layer_norm"
[[layer]]
source = "blocks.{}.up"
target = "layers.{}.dense"
type = "linear"
[[layer]]
source = "scale"
target = "gain"
type = "tensor"
[[ignore]]
pattern = "positions"
why = "computed, not learned"
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


def randomized() -> Torch:
    torch.manual_seed(0)
    net = Torch()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    net.state_dict()["bn.num_batches_tracked"].fill_(12)
    return net


def test_a_network_of_ones_own_there_and_back(rules: Path, tmp_path: Path) -> None:
    net = randomized()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out"), "--rules", str(rules)]) == 0
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "out")
    port = Flax(nnx.Rngs(0))
    state = nnx.state(port, nnx.Not(nnx.RngState))
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(tree))
    nnx.update(port, state)
    x = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    with torch.no_grad():
        attention: Any = net.blocks[11].attention
        theirs = attention(torch.from_numpy(x), torch.from_numpy(x), torch.from_numpy(x))[0].numpy()
        conv = net.conv(torch.from_numpy(x).mT).mT.numpy()
    assert np.allclose(port.layers[11].attn(jnp.array(x)), theirs, atol=1e-4)
    assert np.allclose(port.conv(jnp.array(x))[:, 1:-1], conv, atol=1e-4)
    assert np.array_equal(port.bn.mean[...], net.bn.running_mean.numpy())  # pyright: ignore
    assert (
        main(["convert", str(tmp_path / "out"), str(tmp_path / "back.pt"), "--rules", str(rules), "--to", "torch"]) == 0
    )
    expected = load(tmp_path / "w.pt")
    del expected["positions"]
    assert same(load(tmp_path / "back.pt"), expected)


def test_the_state_of_an_optimizer_of_ones_own_network(rules: Path, tmp_path: Path) -> None:
    net = randomized()
    tuned = torch.optim.AdamW(net.parameters(), lr=0.5)
    for p in net.parameters():
        tuned.state[p] = {"step": torch.tensor(3.0), "exp_avg": p.detach() * 2, "exp_avg_sq": p.detach() ** 2}
    torch.save({"model": net.state_dict(), "optimizer": tuned.state_dict()}, tmp_path / "w.pt")
    read = rulesfile.load(rules)
    convert(tmp_path / "w.pt", tmp_path / "out", rules=read)
    tree = formats.read(tmp_path / "out").tree
    moment = tree["opt_state"]["tensors"]["exp_avg"]["layers"]["3"]["attn"]["query"]["kernel"]
    assert np.array_equal(moment, 2 * tree["model"]["layers"]["3"]["attn"]["query"]["kernel"])
    convert(tmp_path / "out", tmp_path / "back.pt", rules=read, to="torch")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["optimizer"]
    names = back["param_groups"][0]["param_names"]
    assert names == [name for name, _ in net.named_parameters()]  # torch.optim goes by number
    for i, name in enumerate(names):
        assert torch.equal(back["state"][i]["exp_avg"], net.get_parameter(name) * 2)
    tuned.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True)["optimizer"])


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(linen.BatchNorm(use_running_average=True)(linen.Dense(4)(x)))


def test_linen_names_of_ones_own(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).state_dict(), tmp_path / "w.pt")
    rows = [("0", "Dense_0", "linear"), ("1", "BatchNorm_0", "batch_norm"), ("2", "Dense_1", "linear")]
    text = 'target = "linen"\n' + "".join(f'[[layer]]\nsource="{a}"\ntarget="{b}"\ntype="{c}"\n' for a, b, c in rows)
    (tmp_path / "r.toml").write_text(text)
    arguments = ["--rules", str(tmp_path / "r.toml")]
    assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "w.msgpack"), *arguments]) == 0
    variables = Linen().init(jax.random.key(0), jnp.zeros((1, 2)))
    variables = flax.serialization.from_bytes(variables, (tmp_path / "w.msgpack").read_bytes())
    assert np.array_equal(variables["params"]["Dense_0"]["kernel"].T, load(tmp_path / "w.pt")["0.weight"])
    assert main(["convert", str(tmp_path / "w.msgpack"), str(tmp_path / "back.npz"), *arguments]) == 0
    assert same(load(tmp_path / "back.npz"), load(tmp_path / "w.pt"))


WRONG: list[tuple[str, str, list[str]]] = [
    ("positions", "nothing", ["positions (4,): no rule takes it", "ignore 'nothing': matches nothing (computed"]),
    ('source = "conv"', 'source = "konv"', ["konv (conv): matches nothing", "names it; nearest: konv"]),
    ('target = "layers.{}.ln"', 'target = "layers.0.ln"', ["has 1 {}, layers.0.ln has 0"]),
    ('target = "layers.{}.dense"', 'target = "layers.{}.ln"', ["set twice"]),
    ('source = "scale"', 'source = "conv.bias"', ["conv.bias: taken by two rules, conv and", "scale (3,): no rule"]),
    ('type = "linear"', 'type = "linea"', ["type: got 'linea', expected one of conv"]),
    ("heads = 2", "", ["attention needs heads"]),
    ('type = "tensor"', 'typ = "tensor"', ["unknown key 'typ'", "no type"]),
    ('why = "computed, not learned"', "", ["[[ignore]] 1: expected pattern and why"]),
    ('target = "nnx"', 'target = "keras"', ["target: got 'keras', expected one of torch, nnx, linen"]),
    ('source = "torch"', "source = torch", ["invalid TOML"]),
    ('source = "torch"', 'sauce = "torch"', ["unknown key 'sauce'"]),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[new or old for old, new, _ in WRONG])
def test_rules_that_are_wrong(old: str, new: str, said: list[str], rules: Path, tmp_path: Path) -> None:
    """All that is wrong at once, and nothing is written."""
    assert old in RULES
    rules.write_text(RULES.replace(old, new, 1))
    torch.save(Torch().state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError) as raised:
        convert(tmp_path / "w.pt", tmp_path / "out", rules=rulesfile.load(rules))
    for text in said:
        assert text in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_rules_between_other_sides(rules: Path, tmp_path: Path, capsys: Any) -> None:
    torch.save(Torch().state_dict(), tmp_path / "w.pt")
    for options, said in (
        (["--to", "linen"], "are between torch and nnx; got --to linen"),
        (["--model", "resnet50"], "both --model and --rules"),
        (["--check"], "parity check package.module:function"),
    ):
        assert main(["convert", str(tmp_path / "w.pt"), str(tmp_path / "out"), "--rules", str(rules), *options]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_first_draft_of_rules(tmp_path: Path, capsys: Any) -> None:
    """Two networks with other names: the draft, as it is, converts one into the other's names."""
    save(tmp_path / "a.npz", {k.replace("layer", "stage"): v for k, v in noise("cifar_resnet20").items()})
    save(tmp_path / "b.npz", noise("cifar_resnet20"))
    convert(tmp_path / "b.npz", tmp_path / "c.npz", to="nnx")
    assert main(["inspect", "--rules", str(tmp_path / "a.npz"), str(tmp_path / "c.npz")]) == 0
    text = capsys.readouterr().out
    assert 'source = "torch"\ntarget = "nnx"' in text
    assert "no counterpart" not in text
    assert "check: by order among equal shapes" in text
    (tmp_path / "r.toml").write_text(text)
    arguments = ["convert", str(tmp_path / "a.npz"), str(tmp_path / "d.npz"), "--rules", str(tmp_path / "r.toml")]
    assert main(arguments) == 0
    found = formats.read(tmp_path / "d.npz").tree
    expected = formats.read(tmp_path / "c.npz").tree
    stats = {name for name in expected if name.endswith("num_batches_tracked")}
    assert same(found, {name: array for name, array in expected.items() if name not in stats})
    assert main(["inspect", "--rules", str(tmp_path / "a.npz")]) == 2


def test_a_draft_from_two_functions(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from test_rulesfile import Torch as left, Flax, nnx\ndef right(): return Flax(nnx.Rngs(0))\n"
    (tmp_path / "two_models.py").write_text(code)
    assert main(["inspect", "--rules", "two_models:left", "two_models:right"]) == 0
    text = capsys.readouterr().out
    assert 'source = "embed"\ntarget = "embed"\ntype = "embedding"' in text
    assert 'source = "blocks.{}.up"\ntarget = "layers.{}.dense"\ntype = "linear"' in text
    assert 'source = "blocks.{}.attention"\ntarget = "layers.{}.attn"\ntype = "attention"\nheads = 2' in text
    assert [line for line in text.splitlines() if "no counterpart" in line] == [
        "# source positions (4,) (tensor): no counterpart found"
    ]
    assert main(["inspect", "--rules", "two_models:left", "two_models:middle"]) == 2
    assert "expected a function that returns a model" in capsys.readouterr().err


# Name: tensors of a layer in PyTorch, the same in NNX, what a draft of rules between them says.
DRAFTED: dict[str, tuple[dict[str, Shape], dict[str, Shape], str]] = {
    "conv": ({"weight": (6, 4, 3, 2), "bias": (6,)}, {"kernel": (3, 2, 4, 6), "bias": (6,)}, 'type = "conv"'),
    "conv-1d": ({"weight": (6, 4, 3)}, {"kernel": (3, 4, 6)}, 'type = "conv"'),
    "linear": ({"weight": (6, 4), "bias": (6,)}, {"kernel": (4, 6), "bias": (6,)}, 'type = "linear"'),
    "embedding": ({"weight": (6, 4)}, {"embedding": (6, 4)}, 'type = "embedding"'),
    "norm": ({"weight": (6,), "bias": (6,)}, {"scale": (6,), "bias": (6,)}, 'type = "layer_norm"'),
    "norm-without-bias": ({"weight": (6,)}, {"scale": (6,)}, 'type = "layer_norm"'),
    "batch-norm": (
        {**dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (6,)), "num_batches_tracked": ()},
        dict.fromkeys(("scale", "bias", "mean", "var"), (6,)),
        'type = "batch_norm"',
    ),
    "batch-norm-without-scale": (
        dict.fromkeys(("running_mean", "running_var"), (6,)),
        dict.fromkeys(("mean", "var"), (6,)),
        'type = "batch_norm"',
    ),
    "attention": (
        {"in_proj_weight": (18, 6), "out_proj.weight": (6, 6)},
        {**dict.fromkeys(("query.kernel", "key.kernel", "value.kernel"), (6, 2, 3)), "out.kernel": (2, 3, 6)},
        'type = "attention"\nheads = 2',
    ),
    "own": ({"weight": (6,), "gain": ()}, {"scale": (6,), "gain": ()}, 'type = "tensor"'),
}


@pytest.mark.parametrize("case", DRAFTED)
def test_a_draft_reads_the_types_from_the_table(case: str) -> None:
    left, right, expected = DRAFTED[case]
    other = {"other.kernel": np.zeros((1, 1))}  # tells Flax's side by its name
    text = draft.draft(
        {f"a.{name}": np.zeros(shape) for name, shape in left.items()},
        {f"a.{name}": np.zeros(shape) for name, shape in right.items()} | other,
    )
    assert 'target = "nnx"' in text
    assert expected in text
    assert text.count("[[layer]]") == (2 if case == "own" else 1)


# Weights by name.


def served(file: Path) -> Any:
    def download(url: str, to: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        served.urls.append((url, hash_prefix))  # pyright: ignore[reportFunctionMemberAccess]
        Path(to).write_bytes(file.read_bytes())

    served.urls = []  # pyright: ignore[reportFunctionMemberAccess]
    return download


def test_torchvision_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "w.pt", noise())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", served(tmp_path / "w.pt"))
    path, again = (fetched("torchvision://resnet50/IMAGENET1K_V2") for _ in range(2))
    assert path == again  # the second time from the cache
    assert served.urls == [("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "11ad3fa6")]  # pyright: ignore
    assert same(load(path), noise())
    assert main(["convert", "torchvision://resnet50", str(tmp_path / "out")]) == 0
    assert fetched("torchvision://resnet18").name == "resnet18-f37072fd.pth"
    assert all(len(digits) == 8 for weights in DIGITS.values() for digits in weights.values())


def test_no_network_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert main(["convert", "torchvision://resnet18/IMAGENET1K_V1", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "fetch https://download.pytorch.org/models/resnet18-f37072fd.pth and give the file" in lines[0]
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


class NotThere(Exception):
    pass


class NoNetwork(NotThere):
    pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A library in the place of huggingface_hub, with the files of one repository."""
    files: dict[str, Path] = {}
    calls: list[Any] = []

    def hf_hub_download(repository: str, file: str, revision: str | None = None) -> str:
        calls.append((repository, file, revision))
        if not files:
            raise NoNetwork("cannot reach the hub")
        if file not in files:
            raise NotThere(file)
        return str(files[file])

    library = types.SimpleNamespace(hf_hub_download=hf_hub_download, calls=calls)
    errors = types.SimpleNamespace(EntryNotFoundError=NotThere, LocalEntryNotFoundError=NoNetwork)
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)  # pyright: ignore[reportArgumentType]
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)  # pyright: ignore[reportArgumentType]
    return files


def test_hugging_face_by_name(hub: dict[str, Path], tmp_path: Path) -> None:
    save(tmp_path / "w.bin", noise())
    hub["pytorch_model.bin"] = tmp_path / "w.bin"
    assert fetched("hf://timm/resnet50.a1_in1k") == tmp_path / "w.bin"
    save(tmp_path / "w.safetensors", noise())
    hub["model.safetensors"] = tmp_path / "w.safetensors"
    assert main(["convert", "hf://timm/resnet50.a1_in1k", str(tmp_path / "out")]) == 0
    assert same(load(tmp_path / "out"), noise())
    assert fetched("hf://a/b@main/pytorch_model.bin") == tmp_path / "w.bin"
    assert sys.modules["huggingface_hub"].calls[-1] == ("a/b", "pytorch_model.bin", "main")
    with pytest.raises(WeightsError, match=r"has none of other\.bin"):
        fetched("hf://a/b/other.bin")


def test_a_config_of_hugging_face_comes_with_the_weights(hub: dict[str, Path], tmp_path: Path) -> None:
    """Not with a file of another name, which may have another config; and a repository need not have one."""
    save(tmp_path / "model.safetensors", noise())
    (tmp_path / "config.json").write_text("{")
    hub |= {name: tmp_path / name for name in ("model.safetensors", "config.json")}
    hub["other.safetensors"] = tmp_path / "model.safetensors"
    asked = sys.modules["huggingface_hub"].calls
    for address in ("hf://a/b@main", "hf://a/b@main/model.safetensors"):
        assert fetched(address) == tmp_path / "model.safetensors"
        assert asked[-2:] == [("a/b", "config.json", "main"), ("a/b", "model.safetensors", "main")]
    fetched("hf://a/c/other.safetensors")
    assert asked[-1:] == [("a/c", "other.safetensors", None)]
    assert ("a/c", "config.json", None) not in asked
    assert main(["convert", "hf://a/b", str(tmp_path / "out")]) == 2


def test_shards_of_hugging_face(hub: dict[str, Path], tmp_path: Path) -> None:
    save(tmp_path / "one.safetensors", {"a": np.ones(1)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    hub |= {index.name: index, "one.safetensors": tmp_path / "one.safetensors"}
    assert fetched("hf://a/b") == index
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(WeightsError, match="not the plain name"):
        fetched("hf://a/b")


def test_hugging_face_without_network_or_library(hub: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors"
    assert not hub
    with pytest.raises(WeightsError, match="NoNetwork: cannot reach the hub; fetch https://"):
        fetched("hf://timm/resnet50.a1_in1k")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        WeightsError, match=rf"needs huggingface_hub \(pip install 'ports-parity\[hub\]'\); or fetch {address}"
    ):
        fetched("hf://timm/resnet50.a1_in1k")

"""A pairing that was proved converts checkpoints: as rules, and as a script of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx, traverse_util
from safetensors.numpy import load_file, save_file
from torch import nn

import parity
from parity import api
from parity.pairing import derived
from ports import UserError, weights
from ports.weights.rules import rulesfile, script

sys.path.insert(0, str(Path(__file__).parent))
import test_rearranged as rearranged
import test_stacks as stacks

pytestmark = pytest.mark.usefixtures("quick")

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


WIDTH = rearranged.WIDTH


class Convolutions(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 2), padding="VALID", rngs=rngs)
        self.norm = nnx.BatchNorm(4, epsilon=1e-5, momentum=0.9, use_fast_variance=False, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 2, (2, 3), (2, 1), padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.up(self.norm(self.conv(x)))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(3, 4, (3, 2)),
        "norm": nn.BatchNorm2d(4),
        "up": nn.ConvTranspose2d(4, 2, (2, 3), (2, 1)),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    net.norm.num_batches_tracked.fill_(7)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return net.eval()


def apart() -> nn.Module:
    torch.manual_seed(0)
    return rearranged.Apart().eval()


PAIRS: dict[str, Any] = {
    "linen-stack": (stacks.reference, stacks.in_linen, stacks.X),
    "nnx-stack": (stacks.reference, stacks.NnxStack, stacks.X),
    "one-array": (apart, lambda: rearranged.InOneArray("kvq"), rearranged.INPUTS),
    "library-attention": (apart, rearranged.Library, rearranged.INPUTS),
    "convolutions": (convolutions, Convolutions, IMAGES),
}


def arrays(moved: Any) -> dict[str, np.ndarray]:
    """Return all that a Flax model holds, by the names of a checkpoint."""
    if isinstance(moved, tuple):
        return {".".join(at): np.asarray(a) for at, a in traverse_util.flatten_dict(dict(moved[1])).items()}
    state = nnx.to_flat_state(nnx.state(moved, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, at)): np.asarray(v.get_value()) for at, v in state}


def same(a: Path, b: dict[str, np.ndarray]) -> bool:
    sides = ({n: (x.dtype, x.shape, x.tobytes()) for n, x in side.items()} for side in (load_file(a), b))
    mine, theirs = sides
    return mine == theirs


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Any:
    """A pair: PyTorch's tensors, Flax's arrays, the text of the rules, and the rows."""
    ours, port, x = PAIRS[request.param]
    ours = ours()
    text, rows, names = api.paired(
        ours, port(), x, read=lambda both: (derived.rules(both), derived.rows(both), [*both.state])
    )
    own = {name: np.array(a, order="C") for name, a in weights.read(ours).items()}
    return own, arrays(parity.move(ours, port(), x)), text, rows, names, request.param


@pytest.mark.sample(1)
def test_rules_convert_both_ways(pair: Any, tmp_path: Path) -> None:
    own, flax, text, _, _, _ = pair
    file, source, there, back = (
        tmp_path / name for name in ("r.toml", "a.safetensors", "b.safetensors", "c.safetensors")
    )
    file.write_text(text)
    save_file(own, source)
    rules = rulesfile.load(file)
    weights.convert(source, there, rules=rules)
    assert same(there, flax)
    weights.convert(there, back, rules=rules)
    assert same(back, own)


@pytest.mark.sample(1)
def test_the_script_converts_both_ways(pair: Any, tmp_path: Path) -> None:
    own, flax, _, rows, names, _ = pair
    file = tmp_path / "convert.py"
    taken = {name for row in rows for name in row.torch}
    file.write_text(script.text(rows, [name for name in names if name not in taken], file.name))
    save_file(own, tmp_path / "a.safetensors")
    for way, source, target in (("to-flax", "a", "b"), ("to-torch", "b", "c")):
        done = subprocess.run(
            [sys.executable, "-I", file, way, f"{source}.safetensors", f"{target}.safetensors"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert same(tmp_path / "b.safetensors", flax)
    assert same(tmp_path / "c.safetensors", own)


@pytest.mark.sample(2)
def test_the_names_pair_again(pair: Any, tmp_path: Path) -> None:
    _, _, text, rows, _, case = pair
    (tmp_path / "r.toml").write_text(text)
    ours, port, x = PAIRS[case]
    again = api.paired(ours(), port(), x, names=rulesfile.load(tmp_path / "r.toml").names, read=derived.rows)
    assert again == rows


def test_a_script_refuses_another_model(tmp_path: Path) -> None:
    ours, port, x = PAIRS["one-array"]
    rows = api.paired(ours(), port(), x, read=derived.rows)
    file = tmp_path / "convert.py"
    file.write_text(script.text(rows, [], file.name))
    own = {name: np.array(a, order="C") for name, a in weights.read(ours()).items()}
    for wrong, said in (({**own, "more": own["o_proj.bias"]}, "more: nothing says"), ({}, "is not in the file")):
        save_file(wrong, tmp_path / "a.safetensors")
        done = subprocess.run(
            [sys.executable, "-I", file, "to-flax", "a.safetensors", "b.safetensors"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr
        assert not (tmp_path / "b.safetensors").exists()


def test_a_wrong_row_loses_the_numbers_places(tmp_path: Path) -> None:
    """What the tests above compare can fail."""
    ours, port, x = PAIRS["nnx-stack"]
    text = api.paired(ours(), port(), x, read=derived.rules)
    (tmp_path / "r.toml").write_text(text.replace("gather_order = [0, 1, 2]", "gather_order = [1, 0, 2]", 1))
    save_file({n: np.array(a, order="C") for n, a in weights.read(ours()).items()}, tmp_path / "a.safetensors")
    weights.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", rules=rulesfile.load(tmp_path / "r.toml"))
    assert not same(tmp_path / "b.safetensors", arrays(parity.move(ours(), port(), x)))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("torch = 3", r"torch: got 3, expected a list of names"),
        ('torch = ["a", "b"]\nflax = ["c"]\nshape = [2]', r"torch: 2 names need gather"),
        ('torch = ["a"]\nshape = [2]', r"flax: got no name"),
        (
            'torch = ["a"]\nflax = ["c"]\nshape = [2, 3]\ntranspose = [0, 0]',
            r"transpose: got \[0, 0\], expected each of",
        ),
        ('torch = ["a"]\nflax = ["c"]\nshape = [2, 3]\nreshape = [5]', r"hold different numbers of elements"),
        ('torch = ["a"]\nflax = ["c"]\nshape = [2]\nflip = [1]', r"flip: got \[1\], expected axes of \(2,\)"),
        (
            'torch = ["a", "b"]\nflax = ["c"]\nshape = [5]\ngather = "stack"',
            r"gather: 2 parts of \[1, 1\] make no axis",
        ),
        ('torch = ["a"]\nflax = ["c"]\nshape = [-1]', r"shape: got \[-1\], expected a list of numbers from 0"),
        ('torch = ["a"]\nflax = ["c"]\nspin = 1', r"unknown key 'spin'"),
    ],
)
def test_a_wrong_row_is_named(row: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f"[[tensor]]\n{row}\n")
    with pytest.raises(UserError, match=said):
        rulesfile.load(tmp_path / "r.toml")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from parity.commands.cli import main

    monkeypatch.chdir(tmp_path)
    source = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_mapping as t\n"
    source += "def make():\n    ours, port, x = t.PAIRS['nnx-stack']\n    ours = ours()\n"
    source += "    return ours, t.parity.move(ours, port(), x), x\n"
    Path("own.py").write_text(source)
    assert main(["pairs", "own.py:make", "--write", "map.toml"]) == 0
    assert "layers.2.fc2" in capsys.readouterr().out
    assert len(tomllib.loads(Path("map.toml").read_text())["names"]) == 10
    assert main(["check", "own.py:make", "--names", "map.toml", "--steps", "0"]) == 0
    assert main(["export-mapping", "own.py:make", "--script", "convert.py"]) == 0
    compile(Path("convert.py").read_text(), "convert.py", "exec")
    Path("empty.toml").write_text('[[layer]]\nsource = "a"\ntarget = "b"\ntype = "linear"\n')
    assert main(["check", "own.py:make", "--names", "empty.toml"]) == 2
    assert "has no [names]" in capsys.readouterr().err


def test_a_file_of_names_alone(tmp_path: Path) -> None:
    from parity.commands.mapping import names_of

    file = tmp_path / "names.toml"
    file.write_text('[names]\n"a.b" = "c"\n"mask" = ""\n')
    assert names_of(file) == {"a.b": "c", "mask": None}
    with pytest.raises(UserError, match=r"no \[\[tensor\]\]: \[names\] alone converts nothing"):
        rulesfile.load(file)
    for wrong, said in (('[names]\na.b = "c"\n', "all of them in quotes"), ('"a.b" = "c"\n', "expected source, ")):
        file.write_text(wrong)
        with pytest.raises(UserError, match=said):
            names_of(file)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, WIDTH), nn.Linear(WIDTH, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


class Attending(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(7, WIDTH, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.embed.attend(self.embed(x))


@pytest.mark.parametrize("equal", [True, False], ids=["tied", "untied"])
def test_a_script_gives_tied_tensors_both_names(equal: bool, tmp_path: Path) -> None:
    rows, tied = api.paired(
        Tied().eval(), Attending(), np.arange(6)[None], read=lambda both: (derived.rows(both), derived.tied(both))
    )
    assert tied == {"head.weight": "embed.weight"}
    (tmp_path / "convert.py").write_text(script.text(rows, [], "convert.py", tied))
    own = {name: np.array(a, order="C") for name, a in weights.read(Tied()).items()}
    own["head.weight"] = own["head.weight"] + (0 if equal else 1)
    save_file(own, tmp_path / "a.safetensors")
    ways = (("to-flax", "a.safetensors", "b.safetensors"), ("to-torch", "b.safetensors", "c.safetensors"))
    done = [
        subprocess.run([sys.executable, "-I", "convert.py", *way], cwd=tmp_path, capture_output=True, check=False)
        for way in ways
    ]
    assert (done[0].returncode == 0) is equal
    assert not equal or same(tmp_path / "c.safetensors", own)


class Folding(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> Any:
        return linen.RNN(linen.OptimizedLSTMCell(WIDTH))(x)


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


def folding() -> tuple[linen.Module, Any]:
    return Folding(), Folding().init(jax.random.key(0), jnp.asarray(rearranged.INPUTS))


def test_folded_biases_are_no_rearrangement() -> None:
    with pytest.raises(UserError, match="holds the sum of PyTorch's two biases"):
        api.paired(Folded().eval(), folding(), rearranged.INPUTS, read=derived.rows)


@pytest.mark.parametrize(
    ("case", "next_", "code"),
    [
        ("(t.Folded().eval(), t.folding(), t.rearranged.INPUTS)", "parity pairs own.py:make", 2),
        ("(t.apart(), t.rearranged.Library(), t.rearranged.INPUTS)", "parity export-mapping own.py:make", 0),
    ],
    ids=["folded", "library"],
)
def test_a_check_offers_the_mapping_that_can_be_written(
    case: str,
    next_: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from parity.commands.cli import main

    monkeypatch.chdir(tmp_path)
    source = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_mapping as t\n"
    source += f"def make():\n    ours, port, x = {case}\n    return ours, t.parity.move(ours, port, x), x\n"
    Path("own.py").write_text(source)
    assert main(["check", "own.py:make", "--steps", "0"]) == 0
    assert f"\nnext: {next_}" in capsys.readouterr().out
    assert main(["export-mapping", "own.py:make", "--script", "convert.py"]) == code
    assert Path("convert.py").exists() is (code == 0)
    assert main(["pairs", "own.py:make"]) == 0
    said = "checkpoints cannot be converted: lstm.bias_hh_l0: the port holds the sum"
    assert (said in capsys.readouterr().out) is bool(code)

"""Decoders: the same in every port, the same as transformers' classes, and with a cache the same as without."""

from __future__ import annotations

import dataclasses
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest
import torch
from flax import nnx, traverse_util

import parity
import ports
from benchmarks.measure import expected as references
from benchmarks.measure import gate
from benchmarks.studies import decoding
from benchmarks.subjects import jax_steps, torch_steps, transformers_decoders
from benchmarks.subjects.settings import Setting
from parity import subjects
from parity.commands.cli import main
from parity.numerics.pins import Pins
from parity.options import NetworkOptions
from parity.running import lifted_pytorch, memory
from ports import UserError, families, losses, torch_losses
from ports.gpt2.nnx import GPT2MLP
from ports.gpt2.spec import GPT2Spec
from ports.llama.spec import LlamaSpec, RopeScaling
from ports.weights import WeightsError
from ports.weights.checkpoints import convert as conversion
from ports.weights.checkpoints.checkpoint import open_checkpoint
from ports.weights.known.dialects import DIALECTS, mapping
from ports.weights.known.recognise import recognise

GPT2 = GPT2Spec("tiny-gpt2", width=16, heads=4, depth=2, vocabulary=29, length=24)
LLAMA = LlamaSpec(
    "tiny-llama",
    vocabulary=29,
    width=32,
    heads=4,
    kv_heads=2,
    hidden=40,
    depth=2,
    theta=1000.0,
    scaling=RopeScaling(factor=4.0, length=64),
)
QWEN = dataclasses.replace(LLAMA, name="tiny-qwen", kv_heads=1, scaling=None, bias=True, tied=False, epsilon=1e-6)
GPT2_STACKED, QWEN_STACKED = (
    dataclasses.replace(spec, name=f"{spec.name}-stacked", stacked=True) for spec in (GPT2, QWEN)
)
TINY: dict[str, Any] = {spec.name: spec for spec in (GPT2, LLAMA, QWEN, GPT2_STACKED, QWEN_STACKED)}
FLAX = ("nnx", "linen")

pytestmark = pytest.mark.usefixtures("quick")


def tokens(spec: Any, length: int = 9, batch: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, spec.vocabulary, (batch, length))


def drawn(net: Any, seed: int = 1) -> Any:
    """Random numbers in every tensor, so that biases and scales count."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape)) * 0.3))
    return net


def in_port(net: Any, port: str) -> Any:
    """A network of float64 with the same weights in another port; in JAX its calls are made in x64 mode."""
    if port == "pytorch":
        return net
    other = ports.create(net.spec, port, seed=None, dtype="float64")
    variables = ports.weights.write(other, ports.weights.read(net))
    return other if variables is None else (other[0], variables)


class Decoder:
    """A network of any port, called with arrays of numpy. In JAX its methods are compiled, once for each shape."""

    def __init__(self, net: Any, compiled: bool = True) -> None:
        self.compiled = compiled and not isinstance(net, torch.nn.Module)
        whole = self.method(net, "forward" if isinstance(net, torch.nn.Module) else "__call__")
        self.whole = lambda text: np.asarray(whole(text))
        self.prefill, self.decode = self.method(net, "prefill", static_argnums=1), self.method(net, "decode")

    def method(self, net: Any, name: str, **options: Any) -> Any:
        if isinstance(net, torch.nn.Module):
            return lambda *args: self.in_torch(getattr(net, name), args)
        own = getattr(net, name) if isinstance(net, nnx.Module) else partial(net[0].apply, net[1], method=name)
        return jax.jit(own, **options) if self.compiled else own

    @staticmethod
    def in_torch(method: Any, args: Any) -> Any:
        with torch.no_grad():
            return method(*(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args))


def made(spec: Any, port: str) -> Decoder:
    """A decoder with random weights in float64; in JAX inside x64 mode."""
    return Decoder(in_port(drawn(ports.create(spec, "pytorch", dtype="float64")), port))


# ---- the ports


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", TINY)
def test_it_is_the_same_in_every_port(name: str) -> None:
    report = parity.check_network(TINY[name], batch=2, steps=2, optimizer="adamw")
    assert report.ok, str(report)
    assert {row.port for row in report.models[0].rows} == {"nnx", "linen"}
    assert not report.models[0].advice, "the two names of a tied tensor are one"


class Exact(GPT2MLP):
    def __call__(self, x: Any) -> Any:
        return self.c_proj(nnx.gelu(self.c_fc(x), approximate=False))


def plant_gelu(net: Any) -> None:
    net.transformer.h[1].mlp.__class__ = Exact


def plant_gelu_in_all(net: Any) -> None:
    """One block stands for all: the mistake is in each."""
    net.transformer.h.mlp.__class__ = Exact


def plant_unscaled(net: Any) -> None:
    net.model.frequencies = families.get(LLAMA, scaling=None).frequencies()


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("spec", "plant", "said"),
    [
        (GPT2, plant_gelu, "nnx: layer.eval at transformer.h.1.mlp"),
        (GPT2_STACKED, plant_gelu_in_all, "nnx: layer.eval at transformer.h.0.mlp"),
        (LLAMA, plant_unscaled, "[rotary-frequencies-unscaled]: between model.layers.0.self_attn.v_proj"),
    ],
    ids=["gelu", "gelu-stacked", "unscaled"],
)
@pytest.mark.nightly
def test_a_planted_mistake_is_found(spec: Any, plant: Any, said: str) -> None:
    net = drawn(ports.create(spec, "pytorch", dtype="float64"))
    with jax.enable_x64(True):
        port = in_port(net, "nnx")
    plant(port)
    report = parity.check(net, port, steps=1)
    assert report.exit_code == 1
    assert said in str(report), str(report)


@pytest.mark.sample(5)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize("name", TINY)
def test_live_networks_give_every_bit_back(name: str, port: str) -> None:
    weights = ports.weights.read(drawn(ports.create(TINY[name], "pytorch")))
    net = ports.create(TINY[name], port, seed=None)
    variables = ports.weights.write(net, weights)
    back = ports.weights.read(net if variables is None else (net[0], variables))
    assert back.keys() == weights.keys()
    assert all(back[key].tobytes() == array.tobytes() for key, array in weights.items())


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", FLAX)
@pytest.mark.parametrize("spec", [GPT2_STACKED, QWEN_STACKED], ids=lambda spec: spec.name)
def test_stacked_blocks_are_one_array_each(spec: Any, port: str) -> None:
    """The program does not grow with the depth, and the weights of a block are drawn like those of the others."""
    net = ports.create(spec, port)
    held = nnx.to_flat_state(nnx.state(net)) if port == "nnx" else traverse_util.flatten_dict(net[1]["params"]).items()
    shapes = {path: value.shape for path, value in dict[Any, Any](held).items()}
    inside = [shape for path, shape in shapes.items() if {"h", "layers"} & {*path}]
    assert len(shapes) < 20
    assert {shape[0] for shape in inside} == {spec.depth}
    weights = ports.weights.read(net)
    (first, second) = (
        array for name, array in weights.items() if name.endswith(("attn.c_attn.weight", "k_proj.weight"))
    )
    assert np.abs(first - second).max() > 0.01


@pytest.mark.sample(2)
@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("name", TINY)
def test_pytorch_traces_and_exports_it(name: str) -> None:
    net, text = drawn(ports.create(TINY[name], "pytorch")).eval(), torch.from_numpy(tokens(TINY[name]))
    expected = net(text)
    batch = {0: torch.export.Dim("batch")}
    for other in (
        torch.fx.symbolic_trace(net),
        torch.export.export(net, (text,), dynamic_shapes=(batch,)).module(),
    ):
        torch.testing.assert_close(other(text), expected)


def test_a_network_without_weights_has_its_tensors_tied() -> None:
    net = ports.create(GPT2, "pytorch", seed=None)
    assert net.lm_head.weight is net.transformer.wte.weight
    assert not any(p.any() for p in net.parameters())


# ---- the cache


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize("name", TINY)
def test_a_prompt_and_its_continuation_are_the_whole_text(name: str, port: str) -> None:
    """The first three tokens at once, then one by one, and the last two together."""
    spec = TINY[name]
    text = tokens(spec)
    with jax.enable_x64(True):
        net = made(spec, port)
        expected = net.whole(text)
        logits, cache = net.prefill(text[:, :3], 12)
        found = [logits]
        for end in (4, 5, 6, 7, 9):
            logits, cache = net.decode(text[:, sum(x.shape[1] for x in found) : end], cache)
            found.append(logits)
        found = np.concatenate([np.asarray(x) for x in found], axis=1)
    assert np.abs(found - expected).max() <= 1e-13 * np.abs(expected).max()
    assert np.abs(found[:, 1:] - found[:, :-1]).max() > 0.1


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize("name", TINY)
def test_padding_on_the_left_changes_nothing(name: str, port: str) -> None:
    """Texts of 6, 3 and 1 tokens behind padding are what they are alone; so are their continuations."""
    spec, lengths = TINY[name], (6, 3, 1)
    text = tokens(spec, 6 + 3)
    real = np.arange(6) >= 6 - np.array(lengths)[:, None]
    with jax.enable_x64(True):
        net = made(spec, port)
        logits, cache = net.prefill(text[:, :6], 10, real)
        found = [np.asarray(logits)]
        for at in range(6, 9):
            logits, cache = net.decode(text[:, at : at + 1], cache)
            found.append(np.asarray(logits))
        found = np.concatenate(found, axis=1)
        for row, length in enumerate(lengths):
            expected = net.whole(text[row : row + 1, 6 - length :])[0]
            assert np.abs(found[row, 6 - length :] - expected).max() <= 1e-13 * np.abs(expected).max()
        assert np.isfinite(found).all()
        unmasked, _ = net.prefill(text[:, :6], 10)
        assert np.abs(np.asarray(unmasked)[1, 3:] - found[1, 3:6]).max() > 0.1


@pytest.mark.sample(2)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize("name", TINY)
def test_a_batch_of_padding_alone_gives_numbers(name: str, port: str) -> None:
    """As transformers' classes do. What comes behind it is as if nothing had been."""
    spec = TINY[name]
    text = tokens(spec, 7, batch=2)
    with jax.enable_x64(True):
        net = made(spec, port)
        logits, cache = net.prefill(text[:, :4], 8, np.zeros((2, 4), bool))
        assert np.isfinite(np.asarray(logits)).all()
        found, _ = net.decode(text[:, 4:], cache)
        expected = net.whole(text[:, 4:])
    assert np.abs(np.asarray(found) - expected).max() <= 1e-13 * np.abs(expected).max()


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize("name", TINY)
def test_a_long_prompt(name: str, port: str) -> None:
    """2,000 tokens at once, then 3 more; the second text has 500 tokens less."""
    spec = families.get(TINY[name], depth=1, **({"length": 2048} if "gpt2" in name else {}))
    text = tokens(spec, 2003, batch=2)
    real = np.arange(2000) >= np.array([[0], [500]])
    with jax.enable_x64(True):
        net = made(spec, port)
        expected = net.whole(text)[0, 1999:], net.whole(text[1:, 500:])[0, 1499:]
        logits, cache = net.prefill(text[:, :2000], 2010, real)
        found = [np.asarray(logits)[:, -1:]]
        for at in range(2000, 2003):
            logits, cache = net.decode(text[:, at : at + 1], cache)
            found.append(np.asarray(logits))
    found = np.concatenate(found, axis=1)
    for row in (0, 1):
        assert np.abs(found[row] - expected[row]).max() <= 1e-12 * np.abs(expected[row]).max()


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", FLAX)
@pytest.mark.parametrize("name", TINY)
def test_a_compiled_decoder_is_the_same_and_shows_where_its_room_ends(name: str, port: str) -> None:
    """One program for every step. Beyond the room the logits are NaN: no program knows its length before it runs."""
    spec = TINY[name]
    text = tokens(spec)
    with jax.enable_x64(True):
        net = made(spec, port)
        expected = net.whole(text)
        _, cache = net.prefill(text[:, :3], 5)
        for at in (3, 4):
            logits, cache = net.decode(text[:, at : at + 1], cache)
            assert np.abs(np.asarray(logits)[:, 0] - expected[:, at]).max() <= 1e-13 * np.abs(expected).max()
        logits, _ = net.decode(text[:, 5:6], cache)
        assert np.isnan(np.asarray(logits)).all()


# ---- what is refused


@pytest.mark.sample(6)
@pytest.mark.parametrize("port", ports.PORTS)
@pytest.mark.parametrize(
    ("method", "length", "args", "said"),
    [
        ("whole", 25, (), "tiny-gpt2: got 25 tokens, expected 1 to 24: the network has no more positions"),
        ("whole", 0, (), "tiny-gpt2: got a text of 0 tokens, expected 1 or more"),
        ("prefill", 25, (30,), "tiny-gpt2: got 25 tokens, expected 1 to 24"),
        ("prefill", 3, (25,), "tiny-gpt2: got 25 tokens, expected 1 to 24"),
        ("prefill", 3, (2,), "tiny-gpt2: got 3 tokens, the cache has room for 2; give `prefill` a larger room"),
        ("prefill", 0, (2,), "tiny-gpt2: got a text of 0 tokens"),
    ],
)
def test_texts_that_do_not_fit_are_refused(port: str, method: str, length: int, args: Any, said: str) -> None:
    net = Decoder(ports.create(GPT2, port), compiled=False)
    with pytest.raises(UserError, match=said):
        getattr(net, method)(tokens(GPT2, length), *args)


@pytest.mark.sample(1)
@pytest.mark.parametrize("port", ports.PORTS)
def test_a_cache_that_is_full_is_refused(port: str) -> None:
    net = Decoder(ports.create(GPT2, port), compiled=False)
    _, cache = net.prefill(tokens(GPT2, 3), 4)
    _, cache = net.decode(tokens(GPT2, 1), cache)
    with pytest.raises(UserError, match="tiny-gpt2: got 5 tokens, the cache has room for 4"):
        net.decode(tokens(GPT2, 1), cache)


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        (GPT2, {"width": 18}, "width: got 18 for 4 heads, expected a multiple"),
        (GPT2, {"depth": 0}, "depth: got 0, expected a positive"),
        (GPT2, {"kv_heads": 2}, "tiny-gpt2: no option kv_heads; expected one of depth, heads"),
        (LLAMA, {"kv_heads": 3}, "heads: got 4 for 3 of keys and values, expected a multiple"),
        (LLAMA, {"width": 30}, "width: got 30 for 4 heads, expected a multiple"),
        (LLAMA, {"width": 12}, "width: got 3 features a head, expected an even number"),
    ],
)
def test_bad_options(spec: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        families.get(spec, **changes)


# ---- rotary positions


def test_the_speeds_of_rotations_are_transformers() -> None:
    """Those of Llama 3.2: fast ones stay, slow ones are divided by 32, and four lie between."""
    spec = families.get("llama-3.2-1b")
    with torch.device("cpu"):
        theirs = original(families.get(spec, depth=1, vocabulary=2)).model.rotary_emb.inv_freq.numpy()
    ours, plain = np.array(spec.frequencies()), np.array(families.get(spec, scaling=None).frequencies())
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(plain, 500000.0 ** -(np.arange(32) / 32), rtol=1e-12)
    ratio = plain / ours
    assert (ratio[0], ratio[-1]) == (1, pytest.approx(32))
    assert ((ratio > 1.001) & (ratio < 31.9)).sum() > 1


@pytest.mark.parametrize("port", ports.PORTS)
def test_angles_in_bfloat16_are_those_of_float32(port: str) -> None:
    """bfloat16 has eight binary digits: 2,001 rounded to it would turn as 2,000 does."""
    rotation = importlib.import_module(f"ports.llama.{port}").rotation
    positions = np.array([[2000, 2001]])
    library: Any = torch if port == "pytorch" else jnp
    found = rotation(library.asarray(positions), LLAMA.frequencies(), library.bfloat16)
    angles = positions[..., None] * np.array(LLAMA.frequencies())
    for values, expected in zip(found, (np.cos(angles), np.sin(angles)), strict=True):
        assert values.dtype == library.bfloat16
        values = values.float().numpy() if port == "pytorch" else np.asarray(values, np.float32)
        np.testing.assert_allclose(values[:, :, 0], expected, atol=0.01)


# ---- the loss


def test_the_loss_is_the_same_in_both_frameworks_and_leaves_out_what_is_ignored() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 4, 7))
    following = np.array([[1, 2, 3, -100], [6, -100, 0, 5]])
    expected = float(torch_losses.next_token(torch.from_numpy(logits), torch.from_numpy(following)))
    with jax.enable_x64(True):
        found = float(losses.next_token(jnp.asarray(logits), jnp.asarray(following)))
    assert found == pytest.approx(expected, rel=1e-14)
    shifted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_hand = [-np.log(shifted[b, i, following[b, i]]) for b in range(2) for i in range(4) if following[b, i] >= 0]
    assert expected == pytest.approx(np.mean(by_hand), rel=1e-12)


# ---- transformers


def original(spec: Any, **changes: Any) -> Any:
    """Transformers' class of a description, in eval mode."""
    originals.transformers()
    return transformers_decoders.original(spec, **changes).eval()


def results(net: Any, spec: Any, logits: Any) -> dict[str, np.ndarray]:
    """The logits, and the gradients of the loss, in float64 whatever types a class names."""
    text, following = (torch.from_numpy(tokens(spec, seed=seed)) for seed in (0, 5))
    with lifted_pytorch.lifted(None, Pins("")):
        found = logits(net(text))
        torch_losses.next_token(found, following).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {name: tensor.detach().numpy() for name, tensor in {"logits": found, **gradients}.items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", TINY)
def test_it_computes_what_transformers_computes(name: str, attention: str) -> None:
    """Outputs and the gradient of every parameter, in float64."""
    spec = TINY[name]
    with lifted_pytorch.lifted(None, Pins("")):  # their table of rotations, too
        theirs = drawn(original(spec, attn_implementation=attention).double())
    ours = ports.create(spec, "pytorch", seed=None, dtype="float64")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    found = results(ours, spec, lambda logits: logits), results(theirs, spec, lambda output: output.logits)
    assert found[0].keys() == found[1].keys()
    for key, expected in found[1].items():
        assert np.linalg.norm(found[0][key] - expected) <= 1e-12 * np.linalg.norm(expected), key


NAMED = ("gpt2", "gpt2-medium", "llama-3.2-1b", "qwen2.5-0.5b", "smollm2-135m")


@pytest.mark.parametrize("name", NAMED)
def test_transformers_has_these_tensors(name: str) -> None:
    spec = families.get(name)
    with torch.device("meta"):
        theirs = original(spec).state_dict()
    ours = [(n, tuple(s)) for layer in families.layers(spec) for n, s in layer.tensors.items()]
    assert ours == [(n, tuple(t.shape)) for n, t in theirs.items()]


# ---- conversion


@pytest.mark.sample(4)
@pytest.mark.parametrize("to", FLAX)
@pytest.mark.parametrize("name", TINY)
def test_a_folder_of_transformers_is_recognised_and_converted(
    name: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors in shards beside config.json, which have a tied tensor once; into Orbax, and back bit for bit."""
    for table in (families.family_of(TINY[name]).networks, families.NETWORKS, families.KNOWN):
        monkeypatch.setitem(table, name, TINY[name])
    spec = families.get(TINY[name], vocabulary=31)
    theirs = drawn(original(spec))
    theirs.save_pretrained(tmp_path / "a", max_shard_size="8KB")
    assert len([*(tmp_path / "a").glob("*.safetensors")]) > 1
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", to]) == 0
    found = open_checkpoint(tmp_path / "b").found
    assert found is not None
    assert (found.network, found.dialect, found.spec) == (name, to, spec)
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c.safetensors")]) == 0
    back = ports.weights.load(tmp_path / "c.safetensors")
    assert set(back) == set(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        assert back[key].tobytes() == tensor.numpy().tobytes(), key
    port = ports.create(spec, to, seed=None)
    variables = ports.weights.write(port, back)
    assert variables is not None or to == "nnx"


@pytest.mark.sample(1)
@pytest.mark.parametrize("to", FLAX)
@pytest.mark.parametrize("spec", [GPT2, QWEN], ids=lambda spec: spec.name)
def test_blocks_are_stacked_in_a_file_and_come_back(
    spec: Any, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the state of the optimizer, bit for bit; and one block in another's place is seen by --check."""
    monkeypatch.setitem(families.KNOWN, spec.name, spec)
    net = drawn(ports.create(spec, "pytorch"))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.from_numpy(tokens(spec))).square().mean().backward()
    optimizer.step()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "b"), "--to", to, "--stacked"]) == 0
    held = open_checkpoint(tmp_path / "b")
    assert held.found is not None
    assert (held.found.network, held.found.dialect) == (spec.name, f"{to}-stacked")
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c.pt")]) == 0
    back = torch.load(tmp_path / "c.pt", weights_only=True)
    for key, tensor in net.state_dict().items():
        assert torch.equal(back["model"][key], tensor), key
    states = optimizer.state_dict()["state"]
    assert back["optimizer"]["state"].keys() == states.keys()
    for number, state in states.items():
        for slot in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(back["optimizer"]["state"][number][slot], state[slot]), (number, slot)
    command = [
        "convert",
        str(tmp_path / "a.pt"),
        str(tmp_path / "d"),
        "--to",
        to,
        "--stacked",
        "--check",
        "--weights-only",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "sorted", lambda numbers: sorted(numbers, reverse=True), raising=False)
        assert main(command) == 2
    assert "more differ from the source; nothing was written" in capsys.readouterr().err
    assert main(command) == 0


def test_what_cannot_be_stacked_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(families.KNOWN, GPT2.name, GPT2)
    ports.weights.save(tmp_path / "a.npz", ports.weights.read(ports.create(GPT2, "pytorch")))
    ports.weights.save(tmp_path / "r.npz", ports.weights.read(ports.create("cifar_resnet20", "pytorch")))
    for file, to, said in (
        ("a", "torch", "got --to torch, expected one of nnx, linen"),
        ("r", "nnx", "cifar_resnet20 has no blocks"),
    ):
        assert main(["convert", str(tmp_path / f"{file}.npz"), str(tmp_path / "out.npz"), "--to", to, "--stacked"]) == 2
        assert f"--stacked: {said}" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_the_second_name_of_a_tensor_may_be_there_but_with_no_other_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(families.KNOWN, GPT2.name, GPT2)
    weights = ports.weights.read(drawn(ports.create(GPT2, "pytorch")))
    ports.weights.save(tmp_path / "both.npz", weights)
    assert open_checkpoint(tmp_path / "both.npz").found is not None
    other = {**weights, "lm_head.weight": weights["lm_head.weight"] + 1}
    ports.weights.save(tmp_path / "other.npz", other)
    said = "lm_head.weight: is one tensor with transformer.wte.weight in the network, got other values"
    with pytest.raises(WeightsError, match=said):
        open_checkpoint(tmp_path / "other.npz")
    assert main(["convert", str(tmp_path / "other.npz"), str(tmp_path / "out"), "--to", "nnx"]) == 2


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium"])
@pytest.mark.parametrize("masks", [False, True])
def test_the_published_files_of_gpt2_have_other_names(name: str, masks: bool) -> None:
    """Names of the base model, and the causal mask of every block as a buffer."""
    spec = families.get(name)
    shapes = {n: shape for layer in families.layers(spec) for n, shape in layer.tensors.items()}
    names = {n.removeprefix("transformer."): n for n in shapes if n != "lm_head.weight"}
    buffers = {f"h.{i}.attn.bias": (1, 1, spec.length, spec.length) for i in range(spec.depth)} if masks else {}
    found = recognise({own: shapes[n] for own, n in names.items()} | buffers)
    assert (found.network, found.dialect) == (name, "gpt2-published" if masks else "gpt2-base")
    assert any("causal mask" in note for note in found.notes) is masks
    numbers = {own: np.broadcast_to(np.float32(i), shapes[n]) for i, (own, n) in enumerate(names.items())}
    weights = found.read(numbers)
    assert weights.keys() == shapes.keys()
    assert all(weights[n] is numbers[own] for own, n in names.items())
    assert weights["lm_head.weight"] is weights["transformer.wte.weight"]


@pytest.mark.parametrize("name", TINY)
def test_where_flax_networks_keep_their_variables(name: str) -> None:
    """A tensor with two names stands in NNX's state under the first in the alphabet, in Linen's where it is made."""
    spec = TINY[name]
    net = ports.create(spec, "nnx", seed=None)
    variables = {".".join(map(str, at)): v.get_value().shape for at, v in nnx.to_flat_state(nnx.state(net))}
    _, linen = ports.create(spec, "linen", seed=None)
    flat: Any = traverse_util.flatten_dict(linen, sep=".")
    arrays = {at: a.shape for at, a in flat.items()}
    for dialect, expected in (("nnx", variables), ("linen", arrays)):
        rows = mapping(spec, DIALECTS[f"{dialect}-stacked" if spec.stacked else dialect])
        assert {n: s for row in rows for n, s in zip(row.names, row.shapes, strict=True)} == expected


# ---- large networks


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["gpt2-medium", "vit_l_16", "llama-3.2-1b", "qwen2.5-0.5b"])
def test_a_large_network_is_checked_reduced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of block is there at full width, the report says what is left out, and memory suffices."""
    spec = families.get(name)
    small = families.reduced(spec)
    assert (small.width, small.heads, small.hidden, small.depth) == (spec.width, spec.heads, spec.hidden, 2)
    size = families.example_size(small)
    assert memory.required(small, 2, size) < 16e9 < memory.required(spec, 2, size)
    monkeypatch.setattr(memory, "usable", lambda: 16e9)
    with pytest.raises(UserError, match=r"about \d+\.\d GB of memory, .*--reduced"):
        memory.require(spec, 2, size)


def test_the_report_of_a_reduced_network_says_so() -> None:
    deep = families.get(GPT2, depth=5)
    subject = subjects.of_network(deep, (), NetworkOptions(reduced=True, ports=("nnx",)))
    assert subject.note == "2 inputs of 24, seed 0, depth 2 of 5"
    stages = subjects._left_out(families.get("resnet101"), families.reduced(families.get("resnet101")))
    assert stages == ", blocks (2, 2, 2, 2) of (3, 4, 23, 3)"
    assert subjects.of_network(GPT2, (), NetworkOptions(reduced=True)).note == "2 inputs of 24, seed 0"
    with pytest.raises(UserError, match="got weights and reduced, expected one of them"):
        NetworkOptions(reduced=True, weights="a.npz")


def test_all_checks_large_networks_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, bool] = {}

    def check_network(name: str, **options: Any) -> Any:
        asked[name] = options.get("reduced", False)
        raise UserError("not here")

    monkeypatch.setattr("parity.api.check_network", check_network)
    assert main(["check", "--all"]) == 2
    assert asked == dict.fromkeys(families.NETWORKS, True)
    assert main(["check", "gpt2", "resnet18"]) == 2
    assert not asked["gpt2"]
    assert main(["check", "gpt2", "resnet18", "--reduced"]) == 2
    assert asked["gpt2"]


# ---- benchmarks


@pytest.mark.sample(1)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_what_is_timed_is_proved_equal(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.NETWORKS, LLAMA.name, LLAMA)
    setting = Setting(LLAMA.name, mode, 2, "float32", (64,))
    references.prepare(setting, {}, tmp_path)
    case = references.read_case(setting, {}, tmp_path)
    for build in (torch_steps.build, jax_steps.build_nnx, jax_steps.build_linen):
        run = build(case)
        result = run.step(0)
        run.wait(result)
        found = dict(run.numbers(result))
        if mode == "training":
            found |= gate.parameter_change(run.weights(), case.weights)
        verdict = gate.judge(found, case.expected, case.bounds)
        assert verdict.ok, f"{build.__name__}: {verdict}"


# ---- speed


@pytest.mark.usefixtures("no_type_checks")
def test_a_decoder_is_timed_only_with_the_tokens_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a port that takes the least likely token first."""
    originals.transformers()
    result = decoding.measure(GPT2, batch=2, length=4, new=5, rounds=1, compiled=False)
    assert result["other_tokens"] == []
    assert [row["subject"] for row in result["subjects"]] == ["transformers", "pytorch", "nnx", "nnx-scan", "linen"]
    assert "tiny-gpt2, batch 2: tokens/s" in decoding.line(result)
    right = decoding.subjects

    def planted(*args: Any) -> Any:
        found = right(*args)
        return found | {"nnx": lambda prompt: (found["pytorch"](prompt) + 1) % GPT2.vocabulary}

    monkeypatch.setattr(decoding, "subjects", planted)
    result = decoding.measure(GPT2, batch=1, length=4, new=5, rounds=1, compiled=False)
    assert result["other_tokens"] == ["nnx"]
    assert "nnx" not in [row["subject"] for row in result["subjects"]]


@pytest.mark.parametrize(
    ("network", "new", "said"),
    [("resnet18", 4, "resnet18: got a network without a cache"), ("gpt2", 2000, "gpt2: got 4 [+] 2000 tokens")],
)
def test_what_cannot_be_decoded_is_refused(network: str, new: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        decoding.measure(network, batch=1, length=4, new=new, rounds=1, compiled=False)

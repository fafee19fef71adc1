"""Networks of transformers' config.json: described, converted both ways, and equal to transformers' classes."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import originals
import pytest
import torch

import ports
from parity.commands.cli import main
from parity.numerics.pins import Pins
from parity.running import lifted_pytorch
from ports import UserError, families
from ports import config as configs
from ports.config import Keys
from ports.families import described, from_config
from ports.gpt2 import config as gpt2
from ports.llama import config as llama
from ports.llama.spec import LlamaSpec
from ports.weights import WeightsError, open_checkpoint
from ports.weights.checkpoints.described import KEY
from ports.weights.files import formats
from ports.weights.known import dialects
from ports.weights.rules import rulesfile

pytestmark = pytest.mark.usefixtures("quick")

Config = dict[str, Any]

LLAMA3 = {"rope_type": "llama3", "rope_theta": 700.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
SIZES = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
# By name: transformers' class, and its config; no named network has these sizes.
FOLDERS: dict[str, tuple[str, Config]] = {
    "llama": ("LlamaForCausalLM", {"model_type": "llama", **SIZES, "rope_parameters": LLAMA3, "rms_norm_eps": 0.01}),
    "smollm2": (
        "LlamaForCausalLM",
        {"model_type": "llama", **SIZES, "rope_theta": 90.0, "tie_word_embeddings": True, "hidden_act": "swish"},
    ),
    "qwen2": ("Qwen2ForCausalLM", {"model_type": "qwen2", **SIZES, "rope_theta": 50.0, "tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2ForCausalLM", {"model_type": "qwen2", **SIZES, "num_key_value_heads": 3}),
    "mistral": ("MistralForCausalLM", {"model_type": "mistral", **SIZES, "sliding_window": None}),
    "gpt2": ("GPT2LMHeadModel", {"model_type": "gpt2", "vocab_size": 31, "n_embd": 24, "n_layer": 3, "n_head": 3}),
    "gpt2-base": (
        "GPT2Model",
        {"model_type": "gpt2", "vocab_size": 31, "n_embd": 24, "n_layer": 2, "n_head": 6, "n_positions": 20},
    ),
}


def library_config(config: Mapping[str, Any]) -> Any:
    """Transformers' object of a config."""
    given = {key: value for key, value in config.items() if key != configs.TYPE}
    given |= dict.fromkeys(("bos_token_id", "eos_token_id"))
    return originals.transformers().AutoConfig.for_model(config[configs.TYPE], **given)


def model(class_name: str, config: Mapping[str, Any]) -> Any:
    """Transformers' network with random numbers in every tensor, in float64 whatever types the class names."""
    rng = np.random.default_rng(1)
    with lifted_pytorch.lifted(None, Pins("")):  # their table of rotations, too
        net = getattr(originals.transformers(), class_name)(library_config(config)).eval().double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32) * 0.3))
    return net


def saved(path: Path, class_name: str, config: Mapping[str, Any]) -> Any:
    """A folder of float32 as transformers saves it, in shards. Return its network in float64."""
    net = model(class_name, config)
    single = getattr(originals.transformers(), class_name)(library_config(config))
    single.load_state_dict(net.state_dict())
    single.save_pretrained(path, max_shard_size="8KB")
    return net


def written(path: Path, config: Mapping[str, Any] | str) -> Path:
    """A config.json in a folder."""
    path.mkdir(exist_ok=True)
    (path / configs.NAME).write_text(config if isinstance(config, str) else json.dumps(config))
    return path


TOKENS = np.random.default_rng(0).integers(0, 31, (2, 19))


def logits_of(net: Any) -> np.ndarray:
    """The logits of transformers' network; those of a base model have the weights of its embedding."""
    with torch.no_grad(), lifted_pytorch.lifted(None, Pins("")):
        output = net(torch.from_numpy(TOKENS))
        found = output.logits if "logits" in output else output.last_hidden_state @ net.wte.weight.T
    return found.numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def weights_of(net: Any) -> dict[str, np.ndarray]:
    """The torch form in float64 under the names of the network with an output layer."""
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    if "wte.weight" in state:
        state = {f"transformer.{name}": array for name, array in state.items()}
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def in_pytorch(spec: Any, net: Any) -> np.ndarray:
    """The logits of our port with the weights of transformers' network."""
    ours = ports.create(spec, "pytorch", seed=None, dtype="float64")
    ports.weights.write(ours, weights_of(net))
    with torch.no_grad():
        return ours(torch.from_numpy(TOKENS)).numpy()


# ---- folders of transformers


@pytest.mark.sample(6)
@pytest.mark.parametrize("stacked", [False, True], ids=["list", "stacked"])
@pytest.mark.parametrize("to", ["nnx", "linen"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_any_size_is_converted_and_comes_back(
    name: str, to: str, stacked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed call builds a network that computes what transformers computes, and every bit comes back."""
    net = saved(tmp_path / "a", *FOLDERS[name])
    expected = {key: array.astype(np.float32) for key, array in weights_of(net).items()}
    command = ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", to, *(["--stacked"] if stacked else [])]
    assert main(command) == 0
    call = re.search(r"build it with (ports\.create\(.*\))", capsys.readouterr().err)
    assert call is not None
    built = eval(call[1], {"ports": ports})
    spec = built[0].spec if to == "linen" else built.spec
    assert spec == dataclasses.replace(from_config(tmp_path / "a"), stacked=stacked)
    with jax.enable_x64(True):
        port = ports.create(spec, to, seed=None, dtype="float64")
        variables = ports.weights.write(port, ports.weights.load(tmp_path / "b"))
        found = port(TOKENS) if variables is None else port[0].apply(variables, TOKENS)
        assert distance(np.asarray(found), logits_of(net)) < 1e-12
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c.safetensors")]) == 0
    back = ports.weights.load(tmp_path / "c.safetensors")
    assert set(back) == set(expected)
    for key, array in expected.items():
        assert back[key].tobytes() == array.tobytes(), key


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_described_network_is_proved(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By --check, with the network of config.json."""
    saved(tmp_path / "a", *FOLDERS[name])
    checked: list[Any] = []
    create = ports.create
    monkeypatch.setattr(
        ports, "create", lambda spec, *args, **more: checked.append(spec) or create(spec, *args, **more)
    )
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b.msgpack"), "--check"]) == 0
    assert len(checked) == 2
    assert set(checked) == {from_config(tmp_path / "a")}


PLANTED: dict[str, Callable[[Config], Config]] = {
    "epsilon": lambda fields: {"epsilon": 1e-5},
    "theta": lambda fields: {"theta": 10000.0},
    "scaling": lambda fields: {"scaling": None},
    "heads": lambda fields: {"heads": 1, "kv_heads": 1, "width": fields["width"]},
    "factor": lambda fields: {"scaling": dataclasses.replace(fields["scaling"], factor=2.0)},
    "low": lambda fields: {"scaling": dataclasses.replace(fields["scaling"], low=0.5)},
    "length": lambda fields: {"scaling": dataclasses.replace(fields["scaling"], length=2048)},
}


@pytest.mark.parametrize("mistake", [None, *PLANTED])
def test_a_key_read_wrongly_is_seen_in_the_outputs(mistake: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class_name, config = FOLDERS["llama"]
    # One head of keys and values for each head, so that another number of heads has the same shapes.
    config = {**config, "num_attention_heads": 2, "num_key_value_heads": 2} if mistake == "heads" else config
    net = model(class_name, config)
    if mistake is not None:
        read = llama.READER.fields
        reader = dataclasses.replace(llama.READER, fields=lambda keys: (f := read(keys)) | PLANTED[mistake](f))
        monkeypatch.setattr(families, "FAMILIES", [dataclasses.replace(families.LLAMA_FAMILY, config=reader)])
    far = distance(in_pytorch(from_config(config), net), logits_of(net))
    assert (far < 1e-12) is (mistake is None), far
    assert mistake is None or far > 1e-6


# ---- transformers' defaults and spellings

TYPES = [*llama.DEFAULTS, *gpt2.DEFAULTS]
NEEDED: dict[str, Config] = {"mistral": {"sliding_window": None}}
# What transformers computes when it makes the object of a config.
COMPUTED = ("num_key_value_heads", "head_dim", "rope_parameters", "rope_scaling", "layer_types", "sliding_window")


@pytest.mark.parametrize("kind", TYPES)
def test_missing_keys_are_those_of_transformers(kind: str) -> None:
    """The table has the values of their class, and an empty config describes the same network as theirs."""
    theirs = originals.transformers().AutoConfig.for_model(kind)
    table = (llama.DEFAULTS | gpt2.DEFAULTS)[kind]
    shared = [key for key in table if hasattr(theirs, key) and key not in COMPUTED]
    assert len(shared) > 8
    assert {key: table[key] for key in shared} == {key: getattr(theirs, key) for key in shared}
    if "sliding_window" in table:
        assert table["sliding_window"] == type(theirs).sliding_window
    empty = {configs.TYPE: kind, **NEEDED.get(kind, {})}
    assert from_config(empty) == from_config(library_config(empty).to_dict())
    changed = (llama.DEFAULTS | gpt2.DEFAULTS)[kind]
    key = "n_layer" if kind == "gpt2" else "rms_norm_eps"
    assert from_config({**empty, key: 7}) != from_config(empty), changed


OLD_OR_NEW: tuple[Config, ...] = (
    {},
    {"rope_theta": 500.0},
    {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    {"rope_parameters": {}, "rope_theta": 300},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 300.0},
    {"rope_parameters": {"rope_theta": 20.0}, "rope_theta": 300.0},
    {"rope_scaling": {"type": "default"}, "rope_theta": 300.0},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": {"type" if k == "rope_type" else k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 20.0, "rope_type": "default"}},
    {"rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}},
    {"rope_parameters": {k: v for k, v in LLAMA3.items() if not k.startswith("original")}, "rope_theta": 9.0},
    {"rope_parameters": LLAMA3, "rope_scaling": None, "rope_theta": 9.0},
)


@pytest.mark.parametrize("rope", OLD_OR_NEW, ids=range(len(OLD_OR_NEW)))
@pytest.mark.parametrize("kind", llama.DEFAULTS)
def test_rotations_are_read_as_transformers_reads_them(kind: str, rope: Config) -> None:
    """In the spellings of both versions: a config, and the one that transformers makes of it, are one network."""
    config = {configs.TYPE: kind, **SIZES, **NEEDED.get(kind, {}), "max_position_embeddings": 77, **rope}
    theirs = library_config(json.loads(json.dumps(config))).to_dict()
    expected = from_config(theirs)
    assert from_config(config) == expected
    assert expected.theta == theirs["rope_parameters"]["rope_theta"]
    assert (expected.scaling is None) is (theirs["rope_parameters"]["rope_type"] == "default")


def test_random_configs_are_read_as_transformers_reads_them() -> None:
    """Any keys may be missing."""
    rng = random.Random(0)
    options: Config = {
        "vocab_size": [7, 100],
        "hidden_size": [64, 96],
        "intermediate_size": [5, 64],
        "num_hidden_layers": [1, 60],
        "num_attention_heads": [4, 16],
        "num_key_value_heads": [4, 2, None],
        "head_dim": [None],
        "hidden_act": ["silu", "swish"],
        "rms_norm_eps": [1e-5, 1e-6, 0.1],
        "tie_word_embeddings": [True, False],
        "attention_bias": [False],
        "use_sliding_window": [False],
        "max_window_layers": [0, 90],
    }
    seen = set()
    for _ in range(60):
        kind = rng.choice(["llama", "qwen2", "mistral"])
        keys = [key for key in options if key in llama.DEFAULTS[kind] and rng.random() < 0.7]
        config = {configs.TYPE: kind, **NEEDED.get(kind, {}), **{key: rng.choice(options[key]) for key in keys}}
        config |= rng.choice(OLD_OR_NEW)
        if kind == "mistral" and "num_key_value_heads" in config:
            config["num_key_value_heads"] = 2  # their class takes no null there
        ours, theirs = ({"spec": describe(c)} for c in (config, library_config(config).to_dict()))
        assert ours == theirs, config
        seen.add(ours["spec"])
    assert len(seen) > 40


def describe(config: Config) -> Any:
    found = described(config)
    assert found is not None
    return found.spec


@pytest.mark.parametrize("alias", gpt2.ALIASES)
def test_a_second_name_of_a_key_counts(alias: str) -> None:
    config = {configs.TYPE: "gpt2", alias: 24}
    assert from_config(config) == from_config({configs.TYPE: "gpt2", gpt2.ALIASES[alias]: 24})
    with pytest.raises(UserError, match=rf"{alias}: got 24, expected 12, the value of {gpt2.ALIASES[alias]}"):
        from_config({**config, gpt2.ALIASES[alias]: 12})


# ---- what the ports do not compute

REFUSED: list[tuple[str, Config, str]] = [
    ("llama", {"hidden_act": "gelu"}, 'hidden_act: got "gelu", expected "silu" or "swish"'),
    ("llama", {"attention_bias": True}, "attention_bias: got true, expected false"),
    ("llama", {"mlp_bias": True}, "mlp_bias: got true, expected false"),
    ("llama", {"head_dim": 16}, "head_dim: got 16 for 3 heads and hidden_size 24"),
    ("llama", {"num_attention_heads": 5}, "width: got 24 for 5 heads, expected a multiple"),
    ("llama", {"num_key_value_heads": 2}, "heads: got 3 for 2 of keys and values, expected a multiple"),
    ("llama", {"num_attention_heads": 8}, "width: got 3 features a head, expected an even number"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: got 0.5"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 'rope_scaling.type: got "yarn"'),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 'rope_scaling.rope_type: got "linear"'),
    ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, 'rope_parameters.rope_type: got "dynamic"'),
    ("llama", {"rope_parameters": {"rope_type": None}}, "rope_parameters.rope_type: got null"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor: got 0.5"),
    ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention: got a table"),
    ("llama", {"rope_parameters": [1]}, "rope_parameters: got [1], expected a table or null"),
    ("llama", {"rope_parameters": {**LLAMA3, "factor": None}}, "rope_parameters.factor: got null, expected a positive"),
    ("llama", {"rope_parameters": {**LLAMA3, "high_freq_factor": 1.0}}, "rope_parameters.high_freq_factor: got 1.0"),
    ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 5}, "got 32, expected 5, as the key"),
    ("llama", {"rope_theta": 0}, "rope_theta: got 0, expected a positive number below 1e+30"),
    ("llama", {"rope_theta": float("inf")}, "rope_theta: got Infinity, expected a positive number below 1e+30"),
    ("llama", {"rope_theta": 10**400}, "rope_theta: got 1000"),
    ("llama", {"rope_theta": 1e-300}, "rope_theta: got 1e-300"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps: got NaN"),
    ("llama", {"rms_norm_eps": "1e-6"}, 'rms_norm_eps: got "1e-6", expected a positive number'),
    ("llama", {"rms_norm_eps": True}, "rms_norm_eps: got true, expected a positive number below 1e+30"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings: got 1, expected true or false"),
    ("llama", {"vocab_size": "31"}, 'vocab_size: got "31", expected a positive whole number'),
    ("llama", {"vocab_size": 31.0}, "vocab_size: got 31.0, expected a positive whole number"),
    ("llama", {"vocab_size": True}, "vocab_size: got true, expected a positive whole number"),
    ("llama", {"hidden_size": None}, "hidden_size: got null, expected a positive whole number"),
    ("llama", {"hidden_size": 10**5000}, "hidden_size: got int, expected at most 2147483647"),
    ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000, expected at most 1000"),
    ("llama", {"architectures": ["LlamaModel"]}, 'architectures: got ["LlamaModel"], expected LlamaForCausalLM'),
    ("llama", {"architectures": "LlamaForCausalLM"}, 'architectures: got "LlamaForCausalLM"'),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, "use_sliding_window: got true, expected false"),
    ("qwen2", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, "layer_types: got"),
    ("mistral", {}, "sliding_window: got no such key, for which transformers takes 4096, expected null"),
    ("mistral", {"sliding_window": 8}, "sliding_window: got 8, expected null"),
    ("gpt2", {"activation_function": "gelu"}, 'activation_function: got "gelu", expected "gelu_new"'),
    ("gpt2", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon: got 1e-06, expected 1e-05"),
    ("gpt2", {"n_inner": 100}, "n_inner: got 100, expected null or 4 times n_embd, 24"),
    ("gpt2", {"n_head": 5}, "width: got 6 for 5 heads, expected a multiple"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights: got false, expected true"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: got true"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention: got true, expected false"),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings: got false, expected true"),
    ("gpt2", {"architectures": ["GPT2ForSequenceClassification"]}, "architectures: got"),
]
SMALL = {"gpt2": {"n_embd": 6, "n_head": 3}}


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED, ids=[f"{k}-{'-'.join(c)}" for k, c, _ in REFUSED])
def test_what_the_ports_do_not_compute_is_a_line_for_each_key(kind: str, changes: Config, said: str) -> None:
    config = {configs.TYPE: kind, **SMALL.get(kind, SIZES), **changes}
    with pytest.raises(UserError) as caught:
        from_config(config)
    (line,) = caught.value.lines
    assert line.startswith("config.json: ")
    assert said in line
    assert len(line) < 300


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        from_config({configs.TYPE: "llama", "hidden_act": "relu", "mlp_bias": True, "vocab_size": 0})
    assert len(caught.value.lines) == 3


def test_values_that_compute_the_same_are_taken() -> None:
    gpt = {configs.TYPE: "gpt2", "n_inner": 3072, "activation_function": "gelu_pytorch_tanh"}
    assert from_config(gpt) == families.get("gpt2")
    config = {configs.TYPE: "qwen2", **SIZES}
    window = {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 4}
    assert from_config({**config, **window}) == from_config(config)
    assert from_config({**config, "layer_types": ["full_attention"] * 3}) == from_config(config)


@pytest.mark.parametrize("kind", ["bert", None, 5, [], {}])
def test_another_kind_of_config_describes_nothing(kind: Any) -> None:
    assert described({configs.TYPE: kind}) is None
    with pytest.raises(UserError, match=r"model_type: got .*, expected one of resnet, gpt2, llama, qwen2, mistral"):
        from_config({configs.TYPE: kind})


# ---- a folder with the shapes of a named network

TINY = LlamaSpec("tiny", 31, width=24, heads=3, kv_heads=1, hidden=20, depth=3, theta=90.0, epsilon=1e-6)
TINY_CONFIG = {**FOLDERS["smollm2"][1], "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the tensors of a named network."""
    for table in (families.LLAMA_FAMILY.networks, families.NETWORKS, families.KNOWN):
        monkeypatch.setitem(table, TINY.name, TINY)
    folder = written(tmp_path / "a", TINY_CONFIG)
    weights = ports.weights.read(ports.create(TINY, "pytorch", seed=3))
    ports.weights.save(folder / "model.safetensors", weights)
    return folder


DIFFERENT: list[tuple[Config, str]] = [
    ({"rope_theta": 10000.0}, 'theta 10000.0, tiny has 90.0; build it with ports.create("tiny", "nnx", theta=10000.0)'),
    ({"rms_norm_eps": 0.5}, "epsilon 0.5, tiny has 1e-06; build it with"),
    ({"num_attention_heads": 6, "num_key_value_heads": 2}, "heads 6, tiny has 3; kv_heads 2, tiny has 1; build it"),
    ({"rope_scaling": LLAMA3, "rope_theta": 700}, "theta 700.0, tiny has 90.0; scaling ports.llama.spec.RopeScaling("),
    ({"tie_word_embeddings": False}, "tied False, tiny has True; build it with"),
]


@pytest.mark.parametrize(("changes", "said"), DIFFERENT, ids=["-".join(c) for c, _ in DIFFERENT])
def test_what_differs_from_the_named_network_is_said(
    changes: Config, said: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tiny, TINY_CONFIG | changes)
    assert main(["convert", str(tiny), str(tiny.parent / "b")]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("like tiny (torchvision)")
    assert f"parity: note: config.json: {said}" in output.err
    assert main(["inspect", str(tiny)]) == 0
    shown = capsys.readouterr().out
    assert "like tiny" in shown
    assert "config              config.json (llama)" in shown
    assert f"config.json: {said}" in shown
    found = open_checkpoint(tiny.parent / "b").found
    assert found is not None
    assert found.spec == from_config(tiny) != TINY


def test_a_config_of_the_named_network_says_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert from_config(tiny) == TINY
    assert main(["convert", str(tiny), str(tiny.parent / "b.npz"), "--to", "nnx"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("tiny (torchvision)")
    assert output.err == ""


def test_a_named_network_goes_before_its_config(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user who says --model knows what it is; what config.json says is a note."""
    written(tiny, TINY_CONFIG | {"rope_theta": 5.0})
    assert main(["convert", str(tiny), str(tiny.parent / "b"), "--model", "tiny"]) == 0
    output = capsys.readouterr()
    assert "note: --model tiny is taken as it is; config.json: theta 5.0, tiny has 90.0" in output.err
    found = open_checkpoint(tiny.parent / "b").found
    assert found is not None
    assert found.spec == TINY
    written(tiny, TINY_CONFIG | {"hidden_act": "gelu"})
    assert main(["convert", str(tiny), str(tiny.parent / "c"), "--model", "tiny"]) == 0
    assert 'note: --model tiny is taken as it is; config.json: hidden_act: got "gelu"' in capsys.readouterr().err


def test_a_refused_config_stops_the_conversion(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tiny, TINY_CONFIG | {"hidden_act": "gelu"})
    assert main(["convert", str(tiny), str(tiny.parent / "b"), "--to", "nnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert 'config.json: hidden_act: got "gelu", expected "silu" or "swish"' in error
    assert "--model NAME" in error
    assert "--rules FILE" in error
    assert not (tiny.parent / "b").exists()
    assert main(["inspect", str(tiny)]) == 0
    shown = capsys.readouterr().out
    assert "not recognised" in shown
    assert "hidden_act" in shown
    # Tensors that stay as they are need no network.
    assert main(["convert", str(tiny), str(tiny.parent / "b.npz")]) == 0
    assert "names and layouts are taken as they are" in capsys.readouterr().err


def test_a_config_of_another_kind_changes_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / configs.NAME).unlink()
    said = []
    for name, config in (("b", None), ("c", {configs.TYPE: "bert", "hidden_size": 5}), ("d", {})):
        if config is not None:
            written(tiny, config)
        assert main(["inspect", str(tiny)]) == 0
        assert main(["convert", str(tiny), str(tiny.parent / f"{name}.npz"), "--to", "linen"]) == 0
        said.append(capsys.readouterr().out.replace(f"{name}.npz", ""))
    assert len(set(said)) == 1
    assert len({(tiny.parent / f"{name}.npz").read_bytes() for name in "bcd"}) == 1


def test_rules_need_no_config(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('source = "torch"\ntarget = "nnx"\n[[layer]]\nsource = "a"\ntarget = "b"\ntype = "linear"\n')
    folder = written(tmp_path / "a", "{")
    ports.weights.save(folder / "model.safetensors", {"a.weight": np.ones((2, 3)), "a.bias": np.ones(2)})
    assert main(["convert", str(folder), str(tmp_path / "b"), "--to", "nnx"]) == 2
    assert main(["convert", str(folder), str(tmp_path / "b"), "--rules", str(rules)]) == 0
    with pytest.raises(WeightsError, match="--config: got --model or --rules besides"):
        open_checkpoint(folder, rules=rulesfile.load(rules), config=folder)


# ---- which config belongs to a source


def test_a_file_that_transformers_looks_for_has_the_config_beside_it(tiny: Path) -> None:
    written(tiny, TINY_CONFIG | {"rope_theta": 5.0})
    (tiny / "mine.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    for source, expected in ((tiny, 5.0), (tiny / "model.safetensors", 5.0), (tiny / "mine.safetensors", 90.0)):
        found = open_checkpoint(source).found
        assert found is not None
        assert found.spec.theta == expected
    found = open_checkpoint(tiny / "mine.safetensors", config=tiny).found
    assert found is not None
    assert found.spec.theta == 5.0


@pytest.mark.parametrize("name", ["b", "b.npz", "b.safetensors", "b.pt", "b.msgpack", "sharded"])
def test_the_way_back_knows_the_network(
    name: str, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the metadata; msgpack has no room, and takes --config."""
    config = written(tiny, TINY_CONFIG | {"rope_theta": 5.0, "secret": "x"}) / configs.NAME
    more = ["--shard-size", "4KB"] if name == "sharded" else []
    to = "linen" if name == "sharded" else "nnx"
    assert main(["convert", str(tiny), str(tmp_path / name), "--to", to, *more]) == 0
    noted = capsys.readouterr().err
    metadata = formats.read(tmp_path / name).metadata
    again: dict[str, Any] = {}
    if name == "b.msgpack":
        assert "msgpack has no room for what config.json says: keep it for the way back (--config FILE)" in noted
        again["config"] = config
    else:
        kept = json.loads(metadata[KEY])
        assert "secret" not in kept
        assert from_config(kept) == from_config(config)
        assert metadata["network"] == "like tiny"
    found = open_checkpoint(tmp_path / name, **again).found
    assert found is not None
    assert found.spec == from_config(config)
    back = ports.weights.load(tmp_path / name, **again)
    expected = ports.weights.load(tiny)
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in expected.items()}
    options = ["--config", str(config)] if again else []
    assert main(["convert", str(tmp_path / name), str(tmp_path / "last.safetensors"), *options]) == 0
    assert KEY in formats.read(tmp_path / "last.safetensors").metadata
    assert main(["inspect", str(tmp_path / name), *options]) == 0
    assert "theta 5.0, tiny has 90.0" in capsys.readouterr().out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("to", ["nnx", "linen"])
def test_a_module_called_model_is_no_container(to: str, tied: bool, tmp_path: Path) -> None:
    """A decoder in Flax's layout, in a file of PyTorch's: `model` beside `lm_head` or alone."""
    config = FOLDERS["llama"][1] | {"tie_word_embeddings": tied}
    net = saved(tmp_path / "a", FOLDERS["llama"][0], config)
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b.pt"), "--to", to]) == 0
    assert main(["convert", str(tmp_path / "b.pt"), str(tmp_path / "c.safetensors")]) == 0
    back = ports.weights.load(tmp_path / "c.safetensors")
    expected = {name: array.astype(np.float32) for name, array in weights_of(net).items()}
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in expected.items()}


@pytest.mark.parametrize("depth", [2, 40])
def test_without_a_config_the_error_asks_for_it(depth: int, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a network that is near to a named one, and for one that is not."""
    weights = ports.weights.read(ports.create(TINY, "pytorch", depth=depth))
    ports.weights.save(tiny.parent / "w.npz", weights)
    assert main(["convert", str(tiny.parent / "w.npz"), str(tiny.parent / "b")]) == 2
    error = capsys.readouterr().err
    assert "--config FILE" in error
    assert ("the nearest is tiny" in error) is (depth == 2)


def test_metadata_that_is_no_config_is_a_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = formats.read(tiny)
    for text in ("{", "[]", "[" * 10000, "null"):
        content.metadata = {KEY: text}
        formats.write(tiny.parent / "w.npz", content, formats.FORMATS["npz"])
        assert main(["inspect", str(tiny.parent / "w.npz")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"metadata {KEY}: got" in error
        assert "expected an object of JSON" in error


def test_config_is_one_of_three_options(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(tiny / configs.NAME)
    for command in ("convert", "inspect"):
        output = [str(tiny.parent / "b")] if command == "convert" else []
        assert main([command, str(tiny), *output, "--config", config, "--model", "tiny"]) == 2
        assert "--config: got --model" in capsys.readouterr().err
    written(tiny.parent / "bert", {configs.TYPE: "bert"})
    assert main(["convert", str(tiny), str(tiny.parent / "b"), "--config", str(tiny.parent / "bert")]) == 2
    assert "expected model_type resnet or gpt2 or llama or qwen2 or mistral" in capsys.readouterr().err
    assert main(["convert", str(tiny), str(tiny.parent / "b"), "--config", str(tiny / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err


PUBLISHED: dict[str, tuple[Config, int]] = {
    "HuggingFaceTB/SmolLM2-360M": (
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
        },
        361_821_120,
    ),
    "Qwen/Qwen2.5-1.5B": (
        {
            "model_type": "qwen2",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        1_543_714_304,
    ),
    "meta-llama/Llama-3.2-3B": (
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
            "tie_word_embeddings": True,
        },
        3_212_749_824,
    ),
    "openai-community/gpt2-large": ({"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20}, 774_030_080),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_number_of_parameters(name: str) -> None:
    """The sizes and the numbers are of the repositories of these names, and of transformers' classes."""
    config, count = PUBLISHED[name]
    assert dialects.parameters(from_config(config)) == count
    with torch.device("meta"):
        theirs = originals.transformers().AutoModelForCausalLM.from_config(library_config(config))
    assert theirs.num_parameters() == count


@pytest.mark.parametrize("page", ["convert.md", "networks.md"])
def test_the_examples_of_the_pages_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    (block,) = (b for b in re.findall(r"(?s)```python\n(.*?)```", text) if "from_config" in b)
    exec(compile(block, page, "exec"), {"ports": ports})


# ---- configs that are damaged, or of other tensors

DEEP = '{"a":' * 100000 + "1" + "}" * 100000
DAMAGED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is not JSON"),
    "not JSON": ("{model_type: llama}", "is not JSON"),
    "half": ('{"model_type": "lla', "is not JSON"),
    "list": ("[1, 2]", "got list, expected an object of JSON"),
    "text": ('"llama"', "got str, expected an object of JSON"),
    "not UTF-8": (b'{"model_type": "\xff"}', "is not JSON"),
    "twice": ('{"model_type": "llama", "model_type": "gpt2"}', "is not JSON: a key is there twice"),
    "deep": (DEEP, "is not JSON: it is nested too deeply"),
    "digits": ('{"a": ' + "1" * 5000 + "}", "is not JSON"),
    "huge": ('{"a": "' + "x" * (5 << 20) + '"}', "expected at most 4,194,304"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_a_damaged_config_is_a_line(name: str, command: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = DAMAGED[name]
    (tiny / configs.NAME).write_bytes(content if isinstance(content, bytes) else content.encode())
    output = [str(tiny.parent / "b.npz")] if command == "convert" else []
    assert main([command, str(tiny), *output]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{configs.NAME}: {said}" in error or (f"{configs.NAME}: got" in error and said in error)
    assert "move this file away" in error
    assert sorted(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_a_config_that_is_no_file_is_a_line(kind: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny / configs.NAME
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nothing")
    assert main(["convert", str(tiny), str(tiny.parent / "b.npz")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert configs.NAME in error
    assert not (tiny.parent / "b.npz").exists()


CONTRADICTIONS: list[tuple[Config, str]] = [
    ({"hidden_size": 48}, "got shape (31, 24), expected (31, 48)"),
    ({"intermediate_size": 21}, "mlp.gate_proj.weight: got shape (20, 24), expected (21, 24)"),
    ({"vocab_size": 30}, "got shape (31, 24), expected (30, 24)"),
    ({"num_hidden_layers": 4}, "model.layers.3.self_attn.q_proj.weight (24, 24): missing"),
    ({"num_hidden_layers": 2}, "no such tensor in config.json"),
    ({"num_hidden_layers": 900}, "config.json describes 900 blocks, got 30 tensors"),
    ({"model_type": "qwen2"}, "model.layers.0.self_attn.q_proj.bias (24,): missing"),
]


@pytest.mark.parametrize(("changes", "said"), CONTRADICTIONS, ids=["-".join(map(str, c)) for c, _ in CONTRADICTIONS])
def test_a_config_of_other_tensors_is_a_line(
    changes: Config, said: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TINY_CONFIG | changes
    written(tiny, {key: value for key, value in config.items() if key != configs.ARCHITECTURES})
    assert main(["convert", str(tiny), str(tiny.parent / "b"), "--to", "nnx"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert "--config FILE" in error
    assert not (tiny.parent / "b").exists()


def test_other_shapes_stop_even_a_copy(tiny: Path) -> None:
    """Where names and layouts stay as they are, a config with other names only gives a note."""
    written(tiny, TINY_CONFIG | {"hidden_size": 48})
    assert main(["convert", str(tiny), str(tiny.parent / "b.npz")]) == 2
    written(tiny, TINY_CONFIG | {"num_hidden_layers": 2})
    assert main(["convert", str(tiny), str(tiny.parent / "b.npz")]) == 0


def test_a_family_reads_keys_of_its_own_table_alone() -> None:
    problems: list[str] = []
    keys = Keys({"a": 1, "b": 2}, {"a": 3, "c": 4}, problems)
    assert (keys.given, keys.value("a"), keys.value("c"), "b" in keys) == ({"a": 1}, 1, 4, False)
    assert (keys.count("a"), problems) == (1, [])

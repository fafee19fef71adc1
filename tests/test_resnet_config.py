"""ResNets of transformers' config.json: described, converted both ways, and equal to transformers' class."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import originals
import pytest
import torch

import ports
from parity.commands.cli import main
from ports import UserError
from ports.families import NETWORKS, from_config
from ports.resnet import config as resnet

pytestmark = pytest.mark.usefixtures("quick")

Config = dict[str, Any]
SMALL: Config = {"hidden_sizes": [16, 32], "depths": [1, 2], "embedding_size": 8}
# The keys whose values no name and no shape of a tensor shows stand in the first rows.
FOLDERS: dict[str, Config] = {
    "strided first": {**SMALL, "downsample_in_bottleneck": True},
    "smaller first stage": {**SMALL, "downsample_in_first_stage": True},
    "bottleneck": SMALL,
    "basic": {**SMALL, "layer_type": "basic", "num_labels": 5},
    "four stages": {"hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 2, 1], "num_channels": 4, "num_labels": 3},
}
IMAGES = np.random.default_rng(0).standard_normal((2, 4, 67, 50))


def saved(folder: Path, config: Config) -> Any:
    """A folder as transformers saves it, with random numbers in every tensor. Return its network in float64."""
    library = originals.transformers()
    net = library.ResNetForImageClassification(library.ResNetConfig(**config)).eval()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                lowest = 0.5 if name.endswith("var") else -1.0
                tensor.copy_(torch.from_numpy(rng.uniform(lowest, 1, tuple(tensor.shape)).astype(np.float32)))
    net.save_pretrained(folder)
    return net.double()


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_converted_computes_the_same_and_comes_back(name: str, tmp_path: Path) -> None:
    net = saved(tmp_path / "a", FOLDERS[name])
    spec = from_config(tmp_path / "a")
    images = torch.from_numpy(IMAGES[:, : spec.in_channels])
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", "nnx"]) == 0
    ours = ports.create(spec, "pytorch", seed=None, dtype="float64").eval()
    ports.weights.write(ours, ports.weights.load(tmp_path / "b"))
    with torch.no_grad():
        expected, found = net(images).logits, ours(images)
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    assert main(["convert", str(tmp_path / "b"), str(tmp_path / "c.safetensors")]) == 0
    back, first = ports.weights.load(tmp_path / "c.safetensors"), ports.weights.load(tmp_path / "a")
    assert Counter(array.tobytes() for array in back.values()) == Counter(array.tobytes() for array in first.values())


def test_a_stride_that_no_name_shows_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tensors are those of resnet50; the network is another."""
    config = {"model_type": "resnet", "downsample_in_bottleneck": True, "num_labels": 1000}
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = ports.weights.read(ports.create(from_config(folder), "pytorch", seed=0))
    ports.weights.save(folder / "model.safetensors", weights)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "nnx"]) == 0
    said = capsys.readouterr().err
    assert 'stride_at 0, resnet50 has 1; build it with ports.create("resnet50", "nnx", stride_at=0)' in said


def test_published_configs_are_the_named_networks() -> None:
    labels = {str(i): f"class {i}" for i in range(1000)}
    assert from_config({"model_type": "resnet", "id2label": labels}) == NETWORKS["resnet50"]
    basic = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    assert from_config({"model_type": "resnet", "id2label": labels, **basic}) == NETWORKS["resnet18"]


def test_missing_keys_are_those_of_transformers() -> None:
    theirs = originals.transformers().ResNetConfig()
    known = {key: value for key, value in resnet.DEFAULTS["resnet"].items() if key not in ("id2label", "num_labels")}
    found = {key: getattr(theirs, key) for key in known}
    assert known == {key: [*value] if isinstance(value, tuple) else value for key, value in found.items()}
    assert from_config({"model_type": "resnet"}) == from_config(theirs.to_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act: got "gelu", expected "relu": the ports compute no other activation'),
        ({"layer_type": "wide"}, 'layer_type: got "wide", expected "basic" or "bottleneck": the ports have no other'),
        ({"hidden_sizes": [6]}, "hidden_sizes: got [6], expected one to 4 positive whole numbers that 4 divides"),
        ({"hidden_sizes": [4] * 5}, "expected one to 4 positive whole numbers"),
        ({"hidden_sizes": "all"}, 'hidden_sizes: got "all"'),
        ({"depths": [1]}, "depths: got [1], expected 4 positive whole numbers"),
        ({"depths": [1, 1, 1, 5000]}, "at most 1000 in all"),
        ({"embedding_size": 0}, "embedding_size: got 0, expected a positive whole number"),
        ({"downsample_in_bottleneck": 1}, "downsample_in_bottleneck: got 1, expected true or false"),
        ({"architectures": ["ResNetModel"]}, 'got ["ResNetModel"], expected ResNetForImageClassification'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_ports_do_not_compute_is_a_line(changes: Config, said: str) -> None:
    with pytest.raises(UserError) as error:
        from_config({"model_type": "resnet", **changes})
    assert said in str(error.value)

"""The networks as data: counts, torchvision's names, layouts, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ports
from ports import NETWORKS, UserError
from ports.resnet import spec as specs
from ports.resnet.pytorch import skeleton

# Facts about torchvision 0.28 and timm 1.0: the names, shapes and types of their state_dicts.
STATE_DICTS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "state_dicts.json").read_text())

PARAMETERS = {
    "cifar_resnet20": 269_722,
    "preact_resnet110": 1_730_522,
    "preact_resnet164": 1_703_258,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
    "tutorial_net": 5_027_210,
    **{name: found["parameters"] for name, found in STATE_DICTS.items()},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert sum(p.numel() for p in skeleton(NETWORKS[name]).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dict_is_the_one_of_torchvision_or_timm(name: str) -> None:
    state = skeleton(NETWORKS[name]).state_dict()
    entries = [[n, "x".join(map(str, t.shape)), str(t.dtype).removeprefix("torch.")] for n, t in state.items()]
    expected = STATE_DICTS[name]
    if "entries" in expected:
        assert [entry[:2] for entry in entries] == expected["entries"]
    text = "".join(f"{' '.join(entry)}\n" for entry in entries)
    assert (len(entries), hashlib.sha256(text.encode()).hexdigest()) == (expected["tensors"], expected["sha256"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tutorial_net", "conv1 bn1 res1 res2 res3 conv2 bn2 res4 res5 res6 conv3 bn3 res7 res8 res9 fc"),
        ("tutorial_resnet", "layer1 layer2 layer3 layer4 fc"),
        ("wrn_40_4", "conv1 layer1 layer2 layer3 bn fc"),
        ("resnet50d", "conv1 bn1 layer1 layer2 layer3 layer4 fc"),
    ],
)
def test_names_of_the_parts(name: str, expected: str) -> None:
    assert " ".join(part for part, _ in skeleton(NETWORKS[name]).named_children()) == expected


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [(32, [4, 8, 16, 32], [1, 1, 1, 1]), (16, [4, 8, 16, 16], [1, 1, 1, 2]), (8, [4, 8, 8, 8], [1, 1, 2, 4])],
)
def test_output_stride(output_stride: int, strides: list[int], dilations: list[int]) -> None:
    layout = specs.get("resnet50", output_stride=output_stride).layout()
    assert [stage.stride for stage in layout] == strides
    assert [stage.blocks[-1].dilation for stage in layout] == dilations


def test_descriptions_are_frozen_and_hashable() -> None:
    assert len({*NETWORKS.values()}) == len(NETWORKS)
    with pytest.raises(AttributeError):
        NETWORKS["resnet18"].num_classes = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "resnet51"}, r"unknown network 'resnet51'; nearest: resnet50"),
        ({"colour": 3}, r"no option colour; expected one of"),
        ({"output_stride": 12}, r"output_stride: got 12, expected one of 32, 16, 8"),
        ({"num_classes": 0}, r"num_classes: got 0, expected a positive"),
        ({"kernels": (3,)}, r"kernels: got \(3,\), expected two or more"),
        ({"stride_at": 5}, r"stride_at: got 5, expected 0 to 2"),
        ({"shortcut": "none"}, r"shortcut: got 'none', expected one of projection"),
    ],
)
def test_bad_values(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        specs.get(**{"name": "resnet50", **options})


def test_channels_that_groups_do_not_divide() -> None:
    with pytest.raises(UserError, match="groups divide"):
        ports.create("resnet18", "pytorch", groups=5)


def test_no_framework_is_imported() -> None:
    code = "import sys, ports.resnet.spec; sys.exit(bool({'torch', 'jax', 'flax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

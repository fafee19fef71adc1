"""The networks as data: counts, torchvision's names, layouts, and what is refused."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

import ports
from ports import NETWORKS, UserError, families
from ports.building import pytorch
from ports.resnet.spec import BASIC, BOTTLENECK, Block, BlockLayout, Conv, ResNetSpec, Stage, Stem
from ports.tutorial.spec import TutorialSpec
from ports.weights.known.dialects import parameters

# Facts about torchvision 0.28, timm 1.0 and segmentation_models_pytorch 0.6: the names, shapes and types of their
# state_dicts.
STATE_DICTS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "state_dicts.json").read_text())

# torchvision's and timm's documented counts; the others counted by hand from the papers' tables. cifar_resnet20 to 1202
# are the 0.27M to 19.4M of He et al. 2016a, table 6; wrn_28_10 and wrn_40_4 the 36.5M and 8.9M of Zagoruyko, table 4.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnet50d": 25_576_264,
    "cifar_resnet20": 269_722,
    "cifar_resnet32": 464_154,
    "cifar_resnet44": 658_586,
    "cifar_resnet56": 853_018,
    "cifar_resnet110": 1_727_962,
    "cifar_resnet1202": 19_421_274,
    "preact_resnet110": 1_730_522,
    "preact_resnet164": 1_703_258,
    "wrn_28_10": 36_479_194,
    "wrn_40_4": 8_949_210,
    "tutorial_net": 5_027_210,
    "tutorial_resnet": 602_698,
    "encoder_small": 930_826,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "smollm2-135m": 134_515_008,
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
    "unet_resnet34": 24_439_269,
    "residual_lstm": 987_402,
    "residual_gru": 772_874,
}

RESNETS = [name for name, spec in NETWORKS.items() if isinstance(spec, ResNetSpec)]

WRONG: Any = "Net"

TINY = ResNetSpec("tiny", Stem(((8, 3, 1),)), (Stage(8, 1), Stage(16, 1, stride=2)), BASIC, num_classes=5)


@functools.cache
def skeleton(name: Any, **changes: Any) -> Any:
    return pytorch.skeleton(families.get(name, **changes))


def shapes(name: str | ResNetSpec, **changes: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in skeleton(name, **changes).state_dict().items()}


@pytest.mark.sample(14)
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters(name: str) -> None:
    assert sum(p.numel() for p in skeleton(name).parameters()) == PARAMETERS[name]
    assert parameters(NETWORKS[name]) == PARAMETERS[name]


def state_dict_lines(name: str) -> list[str]:
    return [
        f"{n} {'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}\n"
        for n, t in skeleton(name).state_dict().items()
    ]


@pytest.mark.parametrize("name", [n for n in STATE_DICTS if "entries" in STATE_DICTS[n]])
def test_state_dict_line_by_line(name: str) -> None:
    """Says what differs where the digest below says only that something does."""
    assert [line.split(" ")[:2] for line in state_dict_lines(name)] == STATE_DICTS[name]["entries"]


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dict_is_the_one_of_torchvision_or_timm(name: str) -> None:
    lines, expected = state_dict_lines(name), STATE_DICTS[name]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (len(lines), digest) == (expected["tensors"], expected["sha256"])


def test_every_network_with_a_published_state_dict_is_compared() -> None:
    libraries = ("torchvision", "timm", "segmentation_models_pytorch")
    published = {name for name, spec in NETWORKS.items() if any(library in spec.source for library in libraries)}
    assert published == set(STATE_DICTS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tutorial_net", "conv1 bn1 res1 res2 res3 conv2 bn2 res4 res5 res6 conv3 bn3 res7 res8 res9 fc"),
        ("tutorial_resnet", "layer1 layer2 layer3 layer4 fc"),
        ("wrn_40_4", "conv1 layer1 layer2 layer3 bn fc"),
        ("resnet50d", "conv1 bn1 layer1 layer2 layer3 layer4 fc"),
        ("cifar_resnet20", "conv1 bn1 layer1 layer2 layer3 fc"),
    ],
)
def test_names_of_the_parts(name: str, expected: str) -> None:
    assert " ".join(part for part, _ in skeleton(name).named_children()) == expected


def test_names_of_tutorial_resnet() -> None:
    layers = [name for name, module in skeleton("tutorial_resnet").named_modules() if not list(module.children())]
    assert " ".join(layers) == (
        "layer1.0 layer1.1 layer1.2 layer2.conv1 layer2.bn1 layer2.conv2 layer2.bn2 "
        "layer3.conv1 layer3.bn1 layer3.conv2 layer3.bn2 layer3.downsample.0 layer3.downsample.1 "
        "layer4.conv1 layer4.bn1 layer4.conv2 layer4.bn2 fc"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["layer2.0.downsample.0", "layer2.0.downsample.1"]),
        (
            {"shortcut": "projection_always"},
            [f"layer{s}.0.downsample.{i}" for s in (1, 2) for i in (0, 1)],
        ),
        ({"shortcut": "pooled_projection"}, ["layer2.0.downsample.1", "layer2.0.downsample.2"]),
        ({"shortcut_norm": False}, ["layer2.0.downsample.0"]),
        ({"shortcut": "zero_pad"}, []),
        ({"residual": False}, []),
        ({"residual": False, "shortcut": "projection_always"}, []),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "projection" if isinstance(value, dict) else "",
)
def test_layers_of_the_shortcut(changes: dict[str, Any], expected: list[str]) -> None:
    names = dict.fromkeys(n.rpartition(".")[0] for n in shapes(TINY, **changes) if "downsample" in n)
    assert list(names) == expected


def test_plain_twin_has_the_same_layers_but_the_shortcuts() -> None:
    plain = {n: s for n, s in shapes("resnet50").items() if "downsample" not in n}
    assert shapes("resnet50", residual=False) == plain


@pytest.mark.parametrize(
    ("name", "channels", "strides", "blocks"),
    [
        ("resnet18", [64, 128, 256, 512], [4, 8, 16, 32], [2, 2, 2, 2]),
        ("resnet152", [256, 512, 1024, 2048], [4, 8, 16, 32], [3, 8, 36, 3]),
        ("resnet50d", [256, 512, 1024, 2048], [4, 8, 16, 32], [3, 4, 6, 3]),
        ("cifar_resnet20", [16, 32, 64], [1, 2, 4], [3, 3, 3]),
        ("wrn_28_10", [160, 320, 640], [1, 2, 4], [4, 4, 4]),
        ("preact_resnet164", [64, 128, 256], [1, 2, 4], [18, 18, 18]),
    ],
)
def test_stages(name: str, channels: list[int], strides: list[int], blocks: list[int]) -> None:
    layout = NETWORKS[name].layout()
    found = ([s.channels for s in layout], [s.stride for s in layout], [len(s.blocks) for s in layout])
    assert found == (channels, strides, blocks)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("resnet50", [3, 4, 6, 3]),
        ("resnet152", [2, 2, 2, 2]),
        ("cifar_resnet110", [18] * 3),
        ("cifar_resnet1202", [2] * 3),
    ],
)
def test_a_large_network_is_reduced_to_two_blocks_a_stage(name: str, blocks: list[int]) -> None:
    whole = NETWORKS[name]
    small = families.reduced(whole)
    assert [stage.blocks for stage in small.stages] == blocks
    kept = {layer.torch: layer.tensors for layer in families.layers(small)}
    assert {layer.torch: layer.tensors for layer in families.layers(whole) if layer.torch in kept} == kept


@pytest.mark.parametrize("name", RESNETS)
def test_each_block_takes_what_the_one_before_gives(name: str) -> None:
    spec = NETWORKS[name]
    given, taken = [spec.stem.channels], []
    for stage in spec.layout():
        for block in stage.blocks:
            taken.append(block.in_channels)
            given.append(block.out_channels)
    assert taken == given[:-1]
    assert given[-1] == spec.features


@pytest.mark.parametrize(
    ("output_stride", "strides", "first", "rest"),
    [
        (32, [1, 2, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1]),
        (16, [1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 2]),
        (8, [1, 2, 1, 1], [1, 1, 1, 2], [1, 1, 2, 4]),
        (4, [1, 1, 1, 1], [1, 1, 2, 4], [1, 2, 4, 8]),
    ],
)
def test_dilation_replaces_strides(output_stride: int, strides: list[int], first: list[int], rest: list[int]) -> None:
    """As torchvision's replace_stride_with_dilation: a stage's first 3x3 still sees the grid of the stage before."""
    layout = families.get("resnet50", output_stride=output_stride).layout()
    assert [s.blocks[0].stride for s in layout] == strides
    assert [s.blocks[0].first_dilation for s in layout] == first
    assert [s.blocks[1].first_dilation for s in layout] == rest
    assert [s.blocks[0].dilation for s in layout] == rest
    assert layout[-1].stride == output_stride


@pytest.mark.parametrize(
    "spec",
    [
        NETWORKS["resnet50"],
        NETWORKS["resnet50d"],
        NETWORKS["wrn_40_4"],
        replace(TINY, stages=(Stage(8, 1), Stage(8, 1, stride=2))),
    ],
    ids=["resnet50", "resnet50d", "wrn_40_4", "same_channels"],
)
def test_output_stride_changes_no_weight(spec: ResNetSpec) -> None:
    """Dilation is for weights that were trained with strides."""
    assert shapes(spec, output_stride=spec.output_strides[-1]) == shapes(spec)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (BASIC, [(64, 256, 3, 2), (256, 256, 3, 1)]),
        (replace(BASIC, stride_at=1), [(64, 256, 3, 1), (256, 256, 3, 2)]),
        (BOTTLENECK, [(64, 64, 1, 1), (64, 64, 3, 2), (64, 256, 1, 1)]),
        (replace(BOTTLENECK, stride_at=0), [(64, 64, 1, 2), (64, 64, 3, 1), (64, 256, 1, 1)]),
        (replace(BOTTLENECK, base_width=128), [(64, 128, 1, 1), (128, 128, 3, 2), (128, 256, 1, 1)]),
        (replace(BOTTLENECK, groups=32, base_width=4), [(64, 128, 1, 1), (128, 128, 3, 2), (128, 256, 1, 1)]),
    ],
    ids=["basic", "basic-stride_at_1", "bottleneck", "v1", "wide", "resnext"],
)
def test_convolutions_of_a_block(block: Block, expected: list[tuple[int, ...]]) -> None:
    convs = BlockLayout("block", block, 64, 256, stride=2).convs
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convs] == expected
    assert {c.groups for c in convs if c.kernel_size > 1} == {block.groups}


@pytest.mark.parametrize(
    ("conv", "padding"),
    [(Conv(1, 1, 1), 0), (Conv(1, 1, 3), 1), (Conv(1, 1, 7), 3), (Conv(1, 1, 3, dilation=4), 4), (Conv(1, 1, 5, 2), 2)],
    ids=["1x1", "3x3", "7x7", "3x3-dilated_4", "5x5-strided"],
)
def test_padding_keeps_the_size(conv: Conv, padding: int) -> None:
    assert conv.padding == padding


@pytest.mark.parametrize(
    ("description", "field"),
    [(NETWORKS["resnet18"], "num_classes"), (BASIC, "groups"), (Stage(8, 1), "stride"), (Conv(1, 1, 1), "bias")],
    ids=["network", "block", "stage", "convolution"],
)
def test_descriptions_are_frozen(description: Any, field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(description, field, 3)


def test_descriptions_are_hashable_and_differ() -> None:
    assert len({*NETWORKS.values()}) == len(NETWORKS)
    assert hash(families.get("resnet18", num_classes=7)) == hash(families.get("resnet18", num_classes=7))


def test_get_changes_fields_of_network_and_block() -> None:
    spec = families.get("resnet50", num_classes=7, residual=False, output_stride=8)
    expected = replace(NETWORKS["resnet50"], num_classes=7, output_stride=8, block=replace(BOTTLENECK, residual=False))
    assert spec == expected
    assert families.get(spec) == spec


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("resnet51", "resnet50"), ("resnt18", "resnet18"), ("wide_resnet502", "wide_resnet50_2")],
)
def test_unknown_network_names_the_nearest(asked: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"unknown network '{asked}'; nearest: .*{nearest}"):
        families.get(asked)


def test_unknown_network_without_a_near_one_names_all() -> None:
    with pytest.raises(UserError, match=", ".join(NETWORKS)):
        families.get("?")


# Each: what is changed, and what the message says: the field, what it got, what it expected.
BAD_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown_option": ({"colour": 3}, r"resnet50: no option colour; expected one of .*num_classes"),
    "unknown_options": ({"colour": 3, "angle": 1}, r"no option angle, colour; expected one of"),
    "num_classes-0": ({"num_classes": 0}, r"resnet50: num_classes: got 0, expected a positive"),
    "num_classes-negative": ({"num_classes": -1}, r"num_classes: got -1, expected a positive"),
    "num_classes-float": ({"num_classes": 10.0}, r"num_classes: got 10\.0, expected a positive whole"),
    "in_channels-0": ({"in_channels": 0}, r"in_channels: got 0, expected a positive"),
    "input_size-text": ({"input_size": "224"}, r"input_size: got '224', expected a positive"),
    "output_stride-12": ({"output_stride": 12}, r"output_stride: got 12, expected one of 32, 16, 8, 4"),
    "output_stride-64": ({"output_stride": 64}, r"output_stride: got 64, expected one of 32, 16, 8, 4"),
    "output_stride-0": ({"output_stride": 0}, r"output_stride: got 0, expected one of 32, 16, 8, 4"),
    "stride_at-above": ({"stride_at": 3}, r"stride_at: got 3, expected 0 to 2"),
    "stride_at-negative": ({"stride_at": -1}, r"stride_at: got -1, expected 0 to 2"),
    "shortcut": ({"shortcut": "none"}, r"shortcut: got 'none', expected one of projection, projection_always"),
    "groups-0": ({"groups": 0}, r"groups: got 0, expected"),
    "expansion-0": ({"expansion": 0}, r"expansion: got 0, expected"),
    "base_width-0": ({"base_width": 0}, r"base_width: got 0, expected"),
    "stages-none": ({"stages": ()}, r"stages: got 0, expected one to four"),
    "stages-five": ({"stages": 5 * (Stage(8, 1),)}, r"stages: got 5, expected one to four"),
}


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_value(case: str) -> None:
    changes, said = BAD_VALUES[case]
    with pytest.raises(UserError, match=said):
        families.get("resnet50", **changes)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Stage(8, 0), r"blocks: got 0, expected"),
        (lambda: Stage(0, 1), r"channels: got 0, expected"),
        (lambda: Stage(8, 1, stride=0), r"stride: got 0, expected"),
        (lambda: Stem(()), r"convs: got \(\), expected"),
        (lambda: Stem(((8, 4, 1),)), r"convs: got .*4.*, expected .*odd"),
        (lambda: TutorialSpec("t", "TutorialNet", (8,)), r"t: widths: got \(8,\), expected 3"),
        (lambda: TutorialSpec("t", "TutorialResNet", (8, 0)), r"t: width 0: got 0, expected"),
        (lambda: TutorialSpec("t", "TutorialResNet", (8, 8), convs=0), r"t: convs: got 0, expected"),
        (lambda: TutorialSpec("t", WRONG, (8, 8)), r"t: network: got 'Net', expected TutorialNet or"),
    ],
    ids=[
        "no_blocks",
        "no_channels",
        "stride_0",
        "no_stem",
        "even_kernel_in_stem",
        *("widths", "width", "convs", "network"),
    ],
)
def test_bad_value_of_a_part(wrong: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        wrong()


@pytest.mark.parametrize("port", ports.PORTS)
def test_groups_that_do_not_divide(port: str) -> None:
    with pytest.raises(UserError, match=r"got 64 to 320 channels in 5 groups, expected channels that"):
        ports.create("resnet18", port, seed=None, groups=5)


@pytest.mark.parametrize("port", ports.PORTS)
def test_zero_padding_cannot_take_channels_away(port: str) -> None:
    stages = (Stage(16, 1), Stage(8, 1))
    with pytest.raises(UserError, match=r"zero_pad.*16.* 8 channels"):
        ports.create(TINY, port, seed=None, shortcut="zero_pad", stages=stages)


def test_unknown_port() -> None:
    with pytest.raises(UserError, match=r"unknown port 'keras'; expected one of pytorch, nnx, linen"):
        ports.create("resnet18", "keras")


def test_no_framework_is_imported() -> None:
    code = "import sys, ports.resnet.spec; print([m for m in ('torch', 'jax', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_network_is_a_variant_too() -> None:
    assert families.NETWORKS.keys() & families.VARIANTS.keys() == set()

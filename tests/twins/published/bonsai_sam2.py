"""jax-ml/bonsai: blocks of SAM 2, in NNX, against those of facebookresearch/sam2."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from flax import nnx

from ..twin import Difference
from .bonsai_images import BONSAI, MODELS
from .differences import gelu
from .inputs import numbers
from .port import Built, Project, Published

SAM2 = Project("facebookresearch/sam2", "2b90b9f5ceec907a1c18123530e92e794ad901a4")
MODEL, PORT = "sam2.modeling", f"{MODELS}.sam2"
NEEDS = ("hydra-core", "iopath", "torchvision")


def attention(clones: Path) -> Built:
    ours, theirs = import_module(f"{MODEL}.sam.transformer"), import_module(f"{PORT}.model_transformer")
    inputs = (numbers(2, 3, 16), numbers(2, 5, 16), numbers(2, 5, 16))
    return Built(ours.Attention(16, 2, 2), theirs.Attention(16, 2, 2, rngs=nnx.Rngs(0)), inputs)


def rotated(clones: Path) -> Built:
    ours, theirs = import_module(f"{MODEL}.sam.transformer"), import_module(f"{PORT}.model_transformer")
    reference = ours.RoPEAttention(16, 4, feat_sizes=(3, 3))
    port = theirs.RoPEAttention(16, 4, feat_sizes=(3, 3), rngs=nnx.Rngs(0))
    return Built(reference, port, (numbers(2, 9, 16), numbers(2, 9, 16), numbers(2, 9, 16)))


def block(clones: Path) -> Built:
    ours, theirs = import_module(f"{MODEL}.memory_encoder"), import_module(f"{PORT}.model_memory_encoder")
    return Built(ours.CXBlock(8), theirs.ConvNextBlock(8, rngs=nnx.Rngs(0)), (numbers(2, 8, 8, 8),))


def down_sampler(clones: Path) -> Built:
    ours, theirs = import_module(f"{MODEL}.memory_encoder"), import_module(f"{PORT}.model_memory_encoder")
    return Built(ours.MaskDownSampler(16), theirs.MaskDownSampler(16, rngs=nnx.Rngs(0)), (numbers(2, 1, 32, 32),))


ENCODER = "sam2/modeling/memory_encoder.py"
MASKED_GELU = gelu(
    "encoder",
    f"MaskDownSampler's activation is nn.GELU ({ENCODER}:33)",
    "MaskDownSampler's activation is nnx.gelu, which is jax.nn.gelu (bonsai/models/sam2/model_memory_encoder.py:32)",
)
ROTATED = Difference(
    "PyTorch rotates queries and keys by their position; Flax rotates them by their head, for its heads are behind the"
    " positions",
    "RoPEAttention.forward puts the heads in front of the positions (sam2/modeling/sam/transformer.py:291 and 297)",
    "RoPEAttention.__call__ takes axis 2, which has the heads, as the positions"
    " (bonsai/models/sam2/model_transformer.py:235), and so does reshape_for_broadcast"
    " (bonsai/models/sam2/model_positional_encoding.py:230)",
    layers="(the network)",
)
BLOCK = (
    Difference(
        "PyTorch puts the channels last for the linear layers; Flax, whose channels are last already, does it as well"
        " and has the height in their place",
        f"CXBlock.forward permutes (N, C, H, W) ({ENCODER}:108)",
        "ConvNextBlock.__call__ transposes after nnx.Conv (bonsai/models/sam2/model_memory_encoder.py:104)",
        layers="pwconv1",
    ),
    Difference(
        "PyTorch puts the channels back in front of height and width; Flax does it as well and exchanges axes",
        f"CXBlock.forward permutes (N, H, W, C) ({ENCODER}:114)",
        "ConvNextBlock.__call__ transposes (bonsai/models/sam2/model_memory_encoder.py:111)",
        layers="(the network)",
    ),
    gelu(
        "(the network)",
        f"CXBlock.forward calls nn.GELU ({ENCODER}:95)",
        "ConvNextBlock calls nnx.gelu, which is jax.nn.gelu (bonsai/models/sam2/model_memory_encoder.py:88)",
    ),
)


def row(
    name: str,
    port: str,
    model: str,
    build: Callable[[Path], Built],
    differences: tuple[Difference, ...] = (),
    note: str = "",
) -> Published:
    return Published(
        f"bonsai-sam2-{name}",
        BONSAI,
        f"{PORT}.{port}",
        f"{MODEL}.{model}",
        build,
        NEEDS,
        (SAM2,),
        note=note,
        differences=differences,
    )


# The blocks with an MLP, and networks of them, cannot be built with Flax 0.12: they have lists that are not `nnx.List`.
PORTS = (
    row("attention", "model_transformer.Attention", "sam.transformer.Attention", attention),
    row("rope-attention", "model_transformer.RoPEAttention", "sam.transformer.RoPEAttention", rotated, (ROTATED,)),
    row(
        "down-sampler",
        "model_memory_encoder.MaskDownSampler",
        "memory_encoder.MaskDownSampler",
        down_sampler,
        (MASKED_GELU,),
    ),
    row(
        "block",
        "model_memory_encoder.ConvNextBlock",
        "memory_encoder.CXBlock",
        block,
        BLOCK,
        "the port runs only where height, width and channels are as many",
    ),
)

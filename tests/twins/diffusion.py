"""The networks of diffusers: they take images with their channels first in Flax, too."""

from __future__ import annotations

import numpy as np

from .building import diffusers_pair
from .inputs import BATCH
from .twin import Difference, Twin

# GroupNorms have 32 groups, so 32 channels are the fewest.
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}


NORM = Difference(
    "The norm in front of a spatial transformer has epsilon 1e-6 in PyTorch, 1e-5 in Flax",
    "Transformer2DModel._init_continuous_input makes a GroupNorm (models/transformers/transformer_2d.py:176)",
    "FlaxTransformer2DModel.setup makes a GroupNorm (models/attention_flax.py:368)",
    layers="*.attentions.*.norm",
    trap="norm-epsilon-1e-5",
)
GELU = Difference(
    "The gate of the feed-forward layers is the exact GELU in PyTorch, its tanh approximation in Flax",
    "GEGLU.gelu calls F.gelu (models/activations.py:111)",
    "FlaxGEGLU.__call__ calls nn.gelu, whose default is the approximation (models/attention_flax.py:494)",
    layers="*.transformer_blocks.*.ff.net.0",
    trap="gelu-tanh",
)


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((BATCH, *shape))


def noisy() -> dict[str, np.ndarray]:
    return {
        "sample": numbers(1, 4, 8, 8),
        "timestep": np.array([3, 700]),
        "encoder_hidden_states": numbers(2, 5, 16),
    }


TWINS = (
    Twin(
        "unet",
        "diffusers",
        "UNet2DConditionModel",
        lambda _: {**UNET, "sample_size": 8, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        noisy,
        diffusers_pair,
        ordered=True,
        layouts={"input.0": "same"},
        differences=(NORM, GELU),
    ),
    Twin(
        "vae",
        "diffusers",
        "AutoencoderKL",
        lambda _: {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "layers_per_block": 1,
        },
        lambda: {"sample": numbers(1, 3, 16, 16)},
        diffusers_pair,
        ordered=True,
        layouts={"input": "same"},
    ),
    Twin(
        "controlnet",
        "diffusers",
        "ControlNetModel",
        lambda _: {**UNET, "conditioning_embedding_out_channels": (8, 8, 16, 16)},
        lambda: {**noisy(), "condition": numbers(5, 3, 64, 64)},
        diffusers_pair,
        ordered=True,
        layouts={"input.0": "same", "input.3": "same"},
        differences=(NORM, GELU),
    ),
)

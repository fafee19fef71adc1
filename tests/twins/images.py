"""Networks that see."""

from __future__ import annotations

from typing import Any

from .building import transformers_pair
from .inputs import pixels, placed
from .text import ENCODER, WIDTH, both
from .twin import Difference, Twin

PATCHES = {**WIDTH, "image_size": 32, "patch_size": 8}
STAGES = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 5}

BIASED = "flax.linen.BatchNorm keeps the biased variance (flax/linen/normalization.py, BatchNorm.__call__)"


def variance(layers: str, pytorch: str, flax: str) -> Difference:
    """Return the difference of the running variance, at these layers."""
    return Difference(
        "PyTorch keeps n / (n - 1) of the batch's variance as the running variance, Flax keeps the variance itself",
        f"nn.BatchNorm2d ({pytorch})",
        f"{BIASED}, which {flax} uses",
        layers=layers,
        trap="bn-running-var",
    )


RESNET = variance(
    "resnet.*.normalization",
    "models/resnet/modeling_resnet.py:47 and 90",
    "FlaxResNetConvLayer (models/resnet/modeling_flax_resnet.py:114 and 173)",
)
REGNET = variance(
    "regnet.*.normalization",
    "models/regnet/modeling_regnet.py:57 and 99",
    "FlaxRegNetConvLayer (models/regnet/modeling_flax_regnet.py:122 and 175)",
)
REGNET_MODE = Difference(
    "In training the BatchNorms within an X or Y layer use the batch's statistics in PyTorch, the running ones in Flax",
    "RegNetConvLayer.forward calls normalization in the mode of the model (models/regnet/modeling_regnet.py:62)",
    "FlaxRegNetXLayer.__call__ and FlaxRegNetYLayer.__call__ call self.layer without deterministic, whose default is"
    " True (models/regnet/modeling_flax_regnet.py:310 and 398)",
    layers="regnet.encoder.stages.*.layer.*.normalization",
    trap="bn-always-eval",
)
BEIT_RATES = Difference(
    "The rates of stochastic depth are rounded to float32 in PyTorch (0.1 is 0.10000000149), and not in Flax",
    "BeitEncoder.__init__ takes them from torch.linspace (models/beit/modeling_beit.py:655)",
    "FlaxBeitEncoder.setup takes them from np.linspace (models/beit/modeling_flax_beit.py:559)",
    layers="encoder.layer.1",
)


def clip_text(package: Any) -> Any:
    return package.CLIPTextConfig(**ENCODER, projection_dim=16, bos_token_id=0, eos_token_id=2)


def clip_vision(package: Any) -> Any:
    return package.CLIPVisionConfig(**PATCHES, projection_dim=16)


def clip(package: Any) -> Any:
    text, vision = clip_text(package).to_dict(), clip_vision(package).to_dict()
    return package.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


def towers(package: Any) -> Any:
    """A ViT and a BERT that see and read the same."""
    text, vision = package.BertConfig(**ENCODER), package.ViTConfig(**PATCHES)
    return package.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)


TWINS = (
    Twin("vit", "transformers", "ViTModel", lambda p: p.ViTConfig(**PATCHES), pixels, transformers_pair),
    Twin(
        "beit",
        "transformers",
        "BeitModel",
        lambda p: p.BeitConfig(**PATCHES),
        pixels,
        transformers_pair,
        differences=(BEIT_RATES,),
    ),
    Twin(
        "dinov2",
        "transformers",
        "Dinov2Model",
        lambda p: p.Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
        ),
        pixels,
        transformers_pair,
    ),
    Twin(
        "resnet",
        "transformers",
        "ResNetForImageClassification",
        lambda p: p.ResNetConfig(**STAGES),
        pixels,
        transformers_pair,
        differences=(RESNET,),
    ),
    Twin(
        "regnet",
        "transformers",
        "RegNetForImageClassification",
        lambda p: p.RegNetConfig(**STAGES, groups_width=8),
        pixels,
        transformers_pair,
        differences=(REGNET, REGNET_MODE),
    ),
    Twin("clip-vision", "transformers", "CLIPVisionModel", clip_vision, pixels, transformers_pair),
    Twin("clip", "transformers", "CLIPModel", clip, lambda: {**placed(), **pixels()}, transformers_pair),
    Twin(
        "vision-text-dual-encoder",
        "transformers",
        "VisionTextDualEncoderModel",
        towers,
        lambda: {**both(), **pixels()},
        transformers_pair,
    ),
)

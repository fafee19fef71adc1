"""jax-ml/bonsai: networks that see, in NNX."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx
from jax import random

from ..twin import Difference
from .differences import NNX_MOMENTUM, NNX_VARIANCE, gelu, momentum, variance
from .inputs import numbers
from .port import Built, Project, Published

BONSAI = Project("jax-ml/bonsai", "36284254cf738d99c1c5d1e3a292d27656a0a365")
MODELS = "bonsai.models"

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def convnext(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.convnext.modeling")
    sizes, depths = (8, 16, 24, 32), (1, 1, 2, 1)
    config = ours.ConvNextConfig(depths=list(depths), hidden_sizes=list(sizes), num_labels=7, image_size=64)
    port = theirs.ConvNeXt(theirs.ModelConfig(depths, sizes, 0.0, 7), rngs=nnx.Rngs(0))
    options = {"flax_keywords": {"rngs": random.key(0)}}
    return Built(ours.ConvNextForImageClassification(config), port, (numbers(2, 3, 64, 64),), options)


def vit(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.vit.modeling")
    config = ours.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    same = theirs.ModelConfig((32, 32), (8, 8), 3, 32, 0.0, 0.0, 4, 64, 1e-12, 2, 5)
    port = theirs.ViTClassificationModel(same, rngs=nnx.Rngs(0))
    options = {"flax_keywords": {"rngs": None}}
    return Built(ours.ViTForImageClassification(config), port, (numbers(2, 3, 32, 32),), options)


def resnet(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.resnet.modeling")
    config = ours.ResNetConfig(depths=[1, 1, 1, 1], num_labels=5)
    port = theirs.ResNet(theirs.ModelConfig([1, 1, 1, 1], 5), rngs=nnx.Rngs(0))
    return Built(ours.ResNetForImageClassification(config), port, (numbers(2, 3, 64, 64),))


def densenet(clones: Path) -> Built:
    ours, theirs = import_module("torchvision.models"), import_module(f"{MODELS}.densenet121.modeling")
    reference = ours.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=5)
    port = theirs.DenseNet(theirs.ModelConfig(5, [2, 2], 8), rngs=nnx.Rngs(0))
    return Built(reference, port, (numbers(2, 3, 64, 64),))


def dinov3(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.dinov3.modeling")
    sizes = {**SMALL, "num_attention_heads": 2, "image_size": 64}
    config = ours.DINOv3ViTConfig(**sizes, patch_size=16, num_register_tokens=4)
    port = theirs.Dinov3ViTModel(theirs.ModelConfig(**sizes), rngs=nnx.Rngs(0))
    return Built(ours.DINOv3ViTModel(config), port, (numbers(2, 3, 64, 64),))


def siglip(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.gemma3.modeling")
    config = ours.SiglipVisionConfig(**SMALL, num_attention_heads=4, image_size=32, patch_size=8, vision_use_head=False)
    same = theirs.VisionConfig(0.0, 32, 32, 48, 1e-6, 4, 3, 2, 8, False)
    port = theirs.SiglipVisionTransformer(same, rngs=nnx.Rngs(0))
    return Built(ours.SiglipVisionModel(config), port, (numbers(2, 3, 32, 32),))


def vjepa2(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.vjepa2.modeling")
    config = ours.VJEPA2Config(
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=32,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        crop_size=64,
        frames_per_clip=4,
        num_pooler_layers=1,
        mlp_ratio=4.0,
    )
    port = theirs.VJEPA2Model(theirs.ModelConfig.standard_test(), rngs=nnx.Rngs(0))
    options = {"keywords": {"skip_predictor": True}}
    return Built(ours.VJEPA2Model(config), port, (numbers(2, 4, 3, 64, 64),), options)


def vae(clones: Path) -> Built:
    ours, theirs = import_module("diffusers"), import_module(f"{MODELS}.vae.modeling")
    sizes = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    port = theirs.VAE(theirs.ModelConfig(**sizes), nnx.Rngs(0))
    reference = ours.AutoencoderKL(**sizes, **kinds, layers_per_block=2)
    return Built(reference, port, (numbers(2, 3, 16, 16),))


def qwen3_vl(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.qwen3_vl.modeling")
    sizes = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
    }
    pytorch = import_module("transformers.models.qwen3_vl.modeling_qwen3_vl")
    reference = pytorch.Qwen3VLVisionModel(ours.Qwen3VLVisionConfig(**sizes, deepstack_visual_indexes=[0]))
    same = theirs.Qwen3VLVisionConfig(**sizes, deepstack_visual_indexes=(0,))
    grid = np.array([[1, 4, 6]])

    def torch_call(model: Any, patches: Any) -> Any:
        found = model(patches, grid_thw=torch.from_numpy(grid))
        return found.pooler_output, found.deepstack_features

    def flax_call(model: Any, patches: Any) -> Any:
        return model(patches, grid)

    port = theirs.Qwen3VLVisionModel(same, rngs=nnx.Rngs(0))
    return Built(reference, port, (numbers(24, 96),), {"torch_call": torch_call, "flax_call": flax_call})


NORMS = Difference(
    "The LayerNorms have an epsilon of 1e-6 in PyTorch, and of 1e-12 in Flax",
    "ConvNextLayerNorm's default is 1e-6 (models/convnext/modeling_convnext.py:45), and lines 75, 131 and 174 pass it;"
    " layer_norm_eps, which is 1e-12, is that of the last norm alone (line 259)",
    "ModelConfig.layernorm_eps is 1e-12 (bonsai/models/convnext/modeling.py:19), and all norms take it (lines 73, 100"
    " and 125)",
    layers="convnext.*",
    trap="norm-epsilon-1e-12",
)
MERGED_GELU = gelu(
    "*merger*",
    "Qwen3VLVisionPatchMerger calls nn.GELU (models/qwen3_vl/modeling_qwen3_vl.py:178 and 183)",
    "Qwen3VLPatchMerger.__call__ calls nnx.gelu, which is jax.nn.gelu (bonsai/models/qwen3_vl/modeling.py:577)",
)
VIT_GELU = gelu(
    "vit.layers.*.mlp",
    "ViTMLP.forward calls ACT2FN of `gelu` (models/vit/modeling_vit.py:245 and 251)",
    "the encoder's layer calls jax.nn.gelu (bonsai/models/vit/modeling.py:118)",
)
DINO_GELU = gelu(
    "model.layer.*.mlp",
    "DINOv3ViTMLP.forward calls ACT2FN of `gelu` (models/dinov3_vit/modeling_dinov3_vit.py:361 and 364)",
    "Dinov3MLP calls nnx.gelu, which is jax.nn.gelu (bonsai/models/dinov3/modeling.py:252 and 257)",
)
DINO_RESCALED = Difference(
    "In training PyTorch scales the coordinates of the rotary embedding by a random factor, Flax does not",
    "DINOv3ViTRopePositionEmbedding.forward calls augment_patches_center_coordinates"
    " (models/dinov3_vit/modeling_dinov3_vit.py:190), with pos_embed_rescale of 2.0 by default"
    " (models/dinov3_vit/configuration_dinov3_vit.py:97)",
    "Dinov3ViTRopePositionEmbedding.__call__ has one way for both modes (bonsai/models/dinov3/modeling.py:132)",
    layers="(the network)",
)
RESNET_PYTORCH = "nn.BatchNorm2d (models/resnet/modeling_resnet.py:62 and 105)"
RESNET_FLAX = "Bottleneck, Downsample and Stem make it so (bonsai/models/resnet/modeling.py:40, 79 and 107)"
RESNET = (
    momentum("resnet.*.normalization", RESNET_PYTORCH, f"{NNX_MOMENTUM}; {RESNET_FLAX}", "bn-momentum-0.99"),
    variance("resnet.*.normalization", RESNET_PYTORCH, f"{NNX_VARIANCE}; {RESNET_FLAX}"),
)
DENSE_PYTORCH = "nn.BatchNorm2d (torchvision/models/densenet.py:36, 40, 130, 171 and 197)"
DENSE_FLAX = "DenseBlock and the others make it so (bonsai/models/densenet121/modeling.py:59, 60, 87, 105 and 122)"
DENSE = (
    Difference(
        "The first convolution pads 3 on each side in PyTorch; in Flax it pads 2 and 3, as 'SAME' does with stride 2",
        "DenseNet.__init__ (torchvision/models/densenet.py:170)",
        "DenseNet.__init__ (bonsai/models/densenet121/modeling.py:103)",
        layers="features.conv0",
        trap="conv-padding-same",
    ),
    Difference(
        "PyTorch has a ReLU between the first norm and the first pool, and its pool pads both sides; Flax has no ReLU"
        " there, and its pool pads like 'SAME'",
        "DenseNet.__init__ makes relu0 and pool0 (torchvision/models/densenet.py:172 and 173)",
        "DenseNet.__call__ calls init_bn, then init_pool (bonsai/models/densenet121/modeling.py:128 and 129, and 106)",
        layers="features",
    ),
    momentum("features.*norm*", DENSE_PYTORCH, f"{NNX_MOMENTUM}; {DENSE_FLAX}", "bn-momentum-0.99"),
    variance("features.*norm*", DENSE_PYTORCH, f"{NNX_VARIANCE}; {DENSE_FLAX}"),
)

PORTS = (
    Published(
        "bonsai-convnext",
        BONSAI,
        "bonsai.models.convnext.modeling.ConvNeXt",
        "transformers.ConvNextForImageClassification",
        convnext,
        differences=(NORMS,),
    ),
    Published(
        "bonsai-vit",
        BONSAI,
        "bonsai.models.vit.modeling.ViTClassificationModel",
        "transformers.ViTForImageClassification",
        vit,
        differences=(VIT_GELU,),
    ),
    Published(
        "bonsai-resnet",
        BONSAI,
        "bonsai.models.resnet.modeling.ResNet",
        "transformers.ResNetForImageClassification",
        resnet,
        differences=RESNET,
    ),
    Published(
        "bonsai-densenet",
        BONSAI,
        "bonsai.models.densenet121.modeling.DenseNet",
        "torchvision.models.DenseNet",
        densenet,
        needs=("torchvision",),
        note="the port loads weights of Keras, whose DenseNet pads as it does",
        differences=DENSE,
    ),
    Published(
        "bonsai-dinov3",
        BONSAI,
        "bonsai.models.dinov3.modeling.Dinov3ViTModel",
        "transformers.DINOv3ViTModel",
        dinov3,
        differences=(DINO_GELU, DINO_RESCALED),
    ),
    Published(
        "bonsai-siglip",
        BONSAI,
        "bonsai.models.gemma3.modeling.SiglipVisionTransformer",
        "transformers.SiglipVisionModel",
        siglip,
    ),
    Published(
        "bonsai-qwen3-vl-vision",
        BONSAI,
        "bonsai.models.qwen3_vl.modeling.Qwen3VLVisionModel",
        "transformers.models.qwen3_vl.modeling_qwen3_vl.Qwen3VLVisionModel",
        qwen3_vl,
        differences=(MERGED_GELU,),
    ),
    Published(
        "bonsai-vae",
        BONSAI,
        "bonsai.models.vae.modeling.VAE",
        "diffusers.AutoencoderKL",
        vae,
        needs=("diffusers",),
        note="the port decodes the mean of the encoder's distribution, as PyTorch does by default",
    ),
    Published(
        "bonsai-vjepa2",
        BONSAI,
        "bonsai.models.vjepa2.modeling.VJEPA2Model",
        "transformers.VJEPA2Model",
        vjepa2,
        note="with `skip_predictor`: the port's predictor reads a number of a traced array",
    ),
)

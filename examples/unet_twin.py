"""A U-Net of diffusers against its Flax twin, which differs from it at two places.

diffusers 0.35 is the last release with Flax classes. `make setup-twins` sets up an environment with it, and
`.venv-twins/bin/python examples/unet_twin.py` runs this there.
"""

from __future__ import annotations

import tempfile

import diffusers
import numpy as np
import torch

import parity

diffusers.logging.set_verbosity_error()

# A small network of the kind that Stable Diffusion has, with random weights.
torch.manual_seed(0)
torch_model = diffusers.UNet2DConditionModel(
    sample_size=8,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=16,
)
# diffusers itself brings the weights over: it reads PyTorch's files into the Flax class.
with tempfile.TemporaryDirectory() as folder:
    torch_model.save_pretrained(folder, safe_serialization=False)
    module, params = diffusers.FlaxUNet2DConditionModel.from_pretrained(folder, from_pt=True)

# Noisy images, the times of their noise, and the texts that describe them.
rng = np.random.default_rng(0)
inputs = rng.standard_normal((2, 4, 8, 8)), np.array([3, 700]), rng.standard_normal((2, 5, 16))
# diffusers keeps the channels of images first in Flax, too; a check moves them last unless `layouts` says otherwise.
report = parity.check(torch_model, (module, {"params": params}), *inputs, layouts={"input.0": "same"})

for finding in report.models[0].findings:
    print(f"{finding.layer} [{finding.trap}], and at {len(finding.also)} more layers")
    print(f"  {finding.text}")
    print(f"  fix: {finding.fix[0]}")
print(f"cost: {report.models[0].costs[0].said}")
print(f"parity: {report.ok}")

# It prints:
#
#     down_blocks.0.attentions.0.norm [norm-epsilon-1e-5], and at 3 more layers
#       epsilon is 1e-5; pass epsilon explicitly, as PyTorch's layer has it
#       fix: down_blocks_0.attentions_0.norm: epsilon=1e-06
#     down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0 [gelu-tanh], and at 3 more layers
#       between down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj and the end of
#         down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0: GELU's other form: Flax's default is the tanh
#         approximation, PyTorch's the error function; pass approximate=False, or True for PyTorch's
#         approximate='tanh'
#       fix: down_blocks_0.attentions_0.transformer_blocks_0.ff.net_0: gelu(approximate=False)
#     cost: the output changes by 3.9e-05, cosine of the gradients 1.000000, updates differ by 7.9e-05 after 3 steps
#     parity: False

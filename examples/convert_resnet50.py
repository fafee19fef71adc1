# %% [markdown]
# # Convert ResNet-50 for Orbax
#
# A checkpoint of torchvision becomes an Orbax folder, and the folder a Flax NNX network that computes the same.
#
#     python examples/convert_resnet50.py                 # random weights
#     python examples/convert_resnet50.py resnet50.pth    # yours, with the names of torchvision or timm

# %%
from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import torch
from flax import nnx

import ports

given = [Path(name).absolute() for name in sys.argv[1:] if name.endswith(".pth")]
folder = tempfile.TemporaryDirectory()
checkpoint = given[0] if given else Path(folder.name, "resnet50.pth")

# %% [markdown]
# Without a file of yours, write one with random weights. It is what `torch.save(model.state_dict(), …)` writes.

# %%
if not given:
    torch.save(ports.create("resnet50", "pytorch", seed=0).state_dict(), checkpoint)
weights = torch.load(checkpoint, weights_only=True)
print(f"{len(weights)} tensors; conv1.weight has the shape {tuple(weights['conv1.weight'].shape)}")

# %% [markdown]
# Convert it. In a terminal this is `parity convert resnet50.pth resnet50/`.

# %%
command = [sys.executable, "-m", "parity", "convert", checkpoint, "resnet50/"]
print(subprocess.run(command, cwd=folder.name, capture_output=True, text=True, check=True).stdout.strip())

# %% [markdown]
# Orbax alone reads the folder. The network starts without weights of its own (`seed=None`).

# %%
restored = orbax.checkpoint.StandardCheckpointer().restore(Path(folder.name, "resnet50"))
net = ports.create("resnet50", "nnx", seed=None)
nnx.update(net, nnx.restore_int_paths(restored))
net.eval()

# %% [markdown]
# The weights are the same, bit by bit.

# %%
moved = ports.weights.read(net)
same = [name for name, tensor in weights.items() if tensor.numpy().tobytes() == moved[name].tobytes()]
print(f"{len(same)} of {len(weights)} tensors are equal in every bit")

# %% [markdown]
# And so are the outputs, up to the rounding of float32. `parity convert --check` proves that in float64.

# %%
torch_net = ports.create("resnet50", "pytorch", seed=None).eval()
torch_net.load_state_dict(weights)
images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
with torch.no_grad():
    expected = torch_net(torch.from_numpy(images)).numpy()
got = np.asarray(nnx.jit(lambda net, x: net(x))(net, jnp.asarray(images.transpose(0, 2, 3, 1))))
print(f"the logits differ by {np.abs(got - expected).max() / np.abs(expected).max():.0e} of the largest")
print(f"equal: {np.allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())}")
folder.cleanup()

# %% [raw]
# It prints:
#
#     320 tensors; conv1.weight has the shape (64, 3, 7, 7)
#     resnet50 (torchvision): 320 tensors, 102,441,032 bytes
#     written resnet50 (orbax, nnx)
#     320 of 320 tensors are equal in every bit
#     the logits differ by 9e-07 of the largest
#     equal: True

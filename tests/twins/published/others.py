"""jflux, flaxmodels, and the tutorial of jax-ai-stack."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..twin import Difference
from .differences import NNX_VARIANCE, gelu, momentum, variance
from .inputs import numbers, tokens
from .port import Built, Project, Published

JFLUX = Project("ml-gde/jflux", "55b88a367d62f39447047c6183d42fccb74f3a66")
FLUX = Project("black-forest-labs/flux", "802fb4713906133fcbd0d8dc5351620ca4773036", "src")
FLAXMODELS = Project("matthias-wright/flaxmodels", "09bc77215032375d124e3f1eba828dd89c80a850")
JAX_RESNET = Project("n2cholas/jax-resnet", "5b00735aa0a68ec239af4a728ad4a596c1b551f6")
STACK = Project("jax-ml/jax-ai-stack", "59de2e1f79348ac85ee26c463c3cede21d8908a5")

TUTORIAL = "docs/source/JAX_porting_PyTorch_model.md"
CELL = "```{code-cell} ipython3"


def flux(clones: Path) -> Built:
    ours, theirs = import_module("flux.model"), import_module("jflux.model")
    sizes = {
        "in_channels": 8,
        "vec_in_dim": 6,
        "context_in_dim": 10,
        "hidden_size": 32,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": False,
    }
    port = theirs.Flux(theirs.FluxParams(**sizes, rngs=nnx.Rngs(0), param_dtype=jnp.float32))
    n, length, words = 2, 6, 5
    place = np.arange(length)
    ids = np.tile(np.stack([np.zeros(length), place // 3, place % 3], -1), (n, 1, 1)).astype(np.float32)
    times = np.array([0.3, 0.7], np.float32)
    inputs = (
        numbers(n, length, 8),
        ids,
        numbers(n, words, 10),
        np.zeros((n, words, 3), np.float32),
        times,
        numbers(n, 6),
    )
    return Built(ours.Flux(ours.FluxParams(**sizes, out_channels=8)), port, inputs)


def autoencoder(part: str, **sizes: int) -> tuple[Any, Any]:
    """Return PyTorch's encoder or decoder of Flux, and the port's."""
    ours, theirs = import_module("flux.modules.autoencoder"), import_module("jflux.modules.autoencoder")
    sizes |= {"resolution": 16, "in_channels": 3, "ch": 32, "num_res_blocks": 1, "z_channels": 4}
    port = getattr(theirs, part)(**sizes, ch_mult=[1, 2], rngs=nnx.Rngs(0), param_dtype=jnp.float32)
    return getattr(ours, part)(**sizes, ch_mult=[1, 2]), port


def flux_encoder(clones: Path) -> Built:
    return Built(*autoencoder("Encoder"), (numbers(2, 3, 16, 16),))


def flux_decoder(clones: Path) -> Built:
    return Built(*autoencoder("Decoder", out_ch=3), (numbers(2, 4, 8, 8),))


def jax_resnet(clones: Path) -> Built:
    ours, theirs = import_module("torchvision.models.resnet"), import_module("jax_resnet.resnet")
    stages = [1, 1, 1, 1]
    module = theirs.ResNet(theirs.ResNetBlock, stage_sizes=stages, n_classes=5)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    reference = ours.ResNet(ours.BasicBlock, stages, num_classes=5)
    return Built(reference, (module, variables), (numbers(2, 3, 64, 64),))


def resnet18(clones: Path) -> Built:
    ours, theirs = import_module("torchvision.models"), import_module("flaxmodels.resnet.resnet")
    module = theirs.ResNet(
        output="logits",
        pretrained=None,
        normalize=False,
        architecture="resnet18",
        num_classes=5,
        block=theirs.BasicBlock,
    )
    variables = module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return Built(ours.resnet18(num_classes=5), (module, variables), (numbers(2, 3, 64, 64),))


def vgg16(clones: Path) -> Built:
    ours, theirs = import_module("torchvision.models"), import_module("flaxmodels.vgg.vgg")
    module = theirs.VGG(output="logits", pretrained=None, normalize=False, include_head=False)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return Built(ours.vgg16(num_classes=5).features, (module, variables), (numbers(2, 3, 32, 32),))


def gpt2(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module("flaxmodels.gpt2.gpt2")
    config = ours.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    # The port sets this attribute with pretrained weights alone, and reads it without them too.
    theirs.GPT2LMHeadModel.param_dict = None
    module = theirs.GPT2LMHeadModel(config=config, pretrained=None)
    ids = tokens(50, 2, 7)
    return Built(ours.GPT2LMHeadModel(config), (module, module.init(jax.random.key(0), jnp.asarray(ids))), (ids,))


def defined(page: Path) -> dict[str, Any]:
    """Return what the code of a tutorial imports of JAX and Flax, and its classes and functions; nothing else runs."""
    tree = ast.parse(_python(page.read_text()))
    kept = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) or _known(node)]
    found: dict[str, Any] = {"__name__": "tutorial"}
    exec(compile(ast.Module(kept, []), str(page), "exec"), found)
    return found


def _python(text: str) -> str:
    """Return the Python of a page, each line in its place: all other lines are empty."""
    lines, inside, shell = [], False, False
    for line in text.splitlines():
        if line.startswith("```"):
            inside, shell, line = line == CELL, False, ""
        shell = shell or line.startswith("%%")  # the whole cell
        lines.append(line if inside and not shell and not line.startswith(("!", "%")) else "")
    return "\n".join(lines)


def _known(node: ast.stmt) -> bool:
    """Return whether a statement imports something that a class of the tutorial can need."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in ("flax", "jax", "typing", "functools", "collections")
    names = [alias.name.partition(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []
    return bool(names) and set(names) <= {"jax", "math", "numpy", "torch"}


def maxvit(clones: Path) -> Built:
    ours = import_module("torchvision.models")
    kind = defined(clones / STACK.folder / TUTORIAL)["MaxVit"]
    # Flax 0.12.8 keeps a bias that is not there as None, whose value the port's own first weights read.
    kind._init_weights = lambda self, rngs: None
    sizes = {
        "input_size": (64, 64),
        "stem_channels": 16,
        "partition_size": 2,
        "block_channels": [16, 32],
        "block_layers": [1, 1],
        "head_dim": 8,
        "stochastic_depth_prob": 0.2,
        "num_classes": 5,
    }
    return Built(ours.MaxVit(**sizes), kind(**sizes), (numbers(2, 3, 64, 64),))


# The norms of torchvision's ResNet: `bn1`, `layer2.0.downsample.1`.
NORMS = "*[n.][12]"
RESNET_PYTORCH = "nn.BatchNorm2d, momentum 0.1 by default (torchvision/models/resnet.py:75 and 181)"
RESNET = (
    momentum(
        NORMS,
        RESNET_PYTORCH,
        "0.1 is passed (flaxmodels/resnet/resnet.py:76, 92, 107 and 324) as the weight of the old value"
        " (flaxmodels/resnet/ops.py:132)",
        "bn-momentum-copied",
    ),
    variance(
        NORMS, RESNET_PYTORCH, "BatchNorm.__call__ keeps the biased variance (flaxmodels/resnet/ops.py:129 and 133)"
    ),
)
TIED = Difference(
    "The output layer has the embedding's weight in PyTorch, and one of its own in Flax",
    "GPT2LMHeadModel._tied_weights_keys (models/gpt2/modeling_gpt2.py:637)",
    "GPT2LMHeadModel.__call__ makes a linear layer (flaxmodels/gpt2/gpt2.py:347)",
    layers="lm_head",
    trap="weights-not-tied",
)
MAXVIT = (
    gelu(
        "*",
        "MaxVit's activation_layer is nn.GELU (torchvision/models/maxvit.py:608)",
        f"MaxVit's activation_layer is nnx.gelu, which is jax.nn.gelu ({TUTORIAL}:1012)",
    ),
    Difference(
        "The LayerNorms have PyTorch's default epsilon, 1e-5, and Flax's, 1e-6",
        "nn.LayerNorm (torchvision/models/maxvit.py:340, 349 and 700)",
        f"nnx.LayerNorm ({TUTORIAL}:725 and 1105); its default is 1e-6 (flax/nnx/nn/normalization.py:504)",
        layers="*",
        trap="norm-epsilon-1e-6",
    ),
    variance(
        "*",
        "nn.BatchNorm2d (torchvision/models/maxvit.py:627)",
        f"{NNX_VARIANCE}; MaxVit makes it so ({TUTORIAL}:1027)",
    ),
)

PORTS = (
    Published(
        "jflux",
        JFLUX,
        "jflux.model.Flux",
        "flux.model.Flux",
        flux,
        needs=("chex", "einops"),
        others=(FLUX,),
        note="PyTorch's class is that of black-forest-labs/flux at 802fb4713906",
    ),
    Published(
        "jflux-encoder",
        JFLUX,
        "jflux.modules.autoencoder.Encoder",
        "flux.modules.autoencoder.Encoder",
        flux_encoder,
        needs=("chex", "einops"),
        others=(FLUX,),
    ),
    Published(
        "jflux-decoder",
        JFLUX,
        "jflux.modules.autoencoder.Decoder",
        "flux.modules.autoencoder.Decoder",
        flux_decoder,
        needs=("chex", "einops"),
        others=(FLUX,),
    ),
    Published(
        "jax-resnet",
        JAX_RESNET,
        "jax_resnet.resnet.ResNet",
        "torchvision.models.ResNet",
        jax_resnet,
        needs=("torchvision",),
        differences=(
            variance(
                "*",
                "nn.BatchNorm2d (torchvision/models/resnet.py:84, 136 and 198)",
                "nn.BatchNorm (flax/linen/normalization.py:404); jax_resnet/common.py:43 gives it its mode",
            ),
        ),
        note="the port is in train mode where `batch_stats` may change",
    ),
    Published(
        "flaxmodels-resnet18",
        FLAXMODELS,
        "flaxmodels.resnet.resnet.ResNet",
        "torchvision.models.resnet18",
        resnet18,
        needs=("torchvision", "h5py"),
        differences=RESNET,
    ),
    Published(
        "flaxmodels-vgg16",
        FLAXMODELS,
        "flaxmodels.vgg.vgg.VGG",
        "torchvision.models.vgg16",
        vgg16,
        needs=("torchvision", "h5py"),
        note="without the three linear layers, `features` alone",
    ),
    Published(
        "flaxmodels-gpt2",
        FLAXMODELS,
        "flaxmodels.gpt2.gpt2.GPT2LMHeadModel",
        "transformers.GPT2LMHeadModel",
        gpt2,
        needs=("h5py",),
        note="the port calls `jnp.reshape` with an argument that JAX 0.10 no longer has; the runner takes it",
        differences=(TIED,),
    ),
    Published(
        "tutorial-maxvit",
        STACK,
        f"{TUTORIAL}: MaxVit",
        "torchvision.models.MaxVit",
        maxvit,
        needs=("torchvision",),
        note="the port's own first weights do not run on Flax 0.12.8; the row leaves them out",
        differences=MAXVIT,
    ),
)

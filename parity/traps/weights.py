"""Known mistakes in moving a tensor: they are planted in PyTorch's tensor, or show in its relation to the port's."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from parity.traps.trap import Trap
from parity.traps.weight_forms import (
    as_deviation,
    differs_in_one_row,
    flipped,
    forget_bias_added,
    gates_in_order,
    groups_shuffled,
    heads_interleaved,
    is_permuted,
    is_scaled,
    reshaped,
    thirds_in_another_order,
    through,
    transposed,
    turned,
)

CONV, LINEAR, DENSE = ("conv", "conv_transpose"), ("linear",), ("conv", "conv_transpose", "linear", "attention")
KERNEL = "PyTorch has (out, in, height, width), Flax (height, width, in, out): kernel = weight.transpose(2, 3, 1, 0)"
MATRIX = "PyTorch has (out, in), Flax (in, out): kernel = weight.T"
GUIDE = "Flax guide, Convert PyTorch models to Flax"
LSTM = "torch.nn.LSTM, flax.linen.OptimizedLSTMCell"
LOADING = "torch.nn.Module.load_state_dict"

TENSORS = (
    Trap(
        "kernel-in-out-exchanged",
        "weight",
        CONV,
        transposed,
        "in and out channels of the kernel are exchanged",
        "transpose the kernel by (2, 3, 1, 0), channels last; nn.ConvTranspose: transpose_kernel=True",
        GUIDE,
    ),
    Trap(
        "linear-transposed",
        "weight",
        LINEAR,
        transposed,
        "the matrix is not transposed",
        "transpose the weight from (out, in) to (in, out): kernel = weight.T",
        "torch.nn.Linear, flax.linen.Dense",
    ),
    Trap(
        "kernel-flipped",
        "weight",
        CONV,
        flipped,
        "the kernel is flipped",
        "transpose by (2, 3, 1, 0); flip only for nn.ConvTranspose without transpose_kernel=True",
        GUIDE,
    ),
    Trap(
        "kernel-transposed",
        "weight",
        CONV,
        turned,
        "height and width of the kernel are exchanged",
        "transpose the kernel by (2, 3, 1, 0), channels last; nn.ConvTranspose: transpose_kernel=True",
        GUIDE,
    ),
    Trap(
        "kernel-reshaped",
        "weight",
        DENSE,
        reshaped,
        "the kernel was reshaped where its axes had to move",
        "move the axes before any reshape: weight.T, or weight.transpose(2, 3, 1, 0) of a convolution",
        GUIDE,
    ),
    Trap(
        "lstm-gates-ifog",
        "weight",
        ("lstm",),
        gates_in_order((0, 1, 3, 2)),
        "the gates are in the order i, f, o, g",
        "split PyTorch's weights into the gates i, f, g, o, in that order",
        LSTM,
    ),
    Trap(
        "lstm-gates-igfo",
        "weight",
        ("lstm",),
        gates_in_order((0, 2, 1, 3)),
        "the gates are in the order i, g, f, o",
        "split PyTorch's weights into the gates i, f, g, o, in that order",
        LSTM,
    ),
    Trap(
        "gru-gates-zrn",
        "weight",
        ("gru",),
        gates_in_order((1, 0, 2)),
        "the gates are in the order z, r, n",
        "split PyTorch's weights into the gates r, z, n, in that order",
        "torch.nn.GRU, flax.linen.GRUCell",
    ),
    Trap(
        "weight-lost", "weight", (), np.zeros_like, "the tensor is zero", "write PyTorch's tensor to the port", LOADING
    ),
    Trap(
        "weights-through-float16",
        "weight",
        (),
        through(np.float16),
        "the numbers went through float16",
        "keep the dtype of PyTorch's tensor when you move it",
        "torch.finfo",
    ),
    Trap(
        "weights-through-bfloat16",
        "weight",
        (),
        through(ml_dtypes.bfloat16),
        "the numbers went through bfloat16",
        "keep the dtype of PyTorch's tensor when you move it",
        "torch.finfo",
    ),
    Trap(
        "lstm-gates-iofg",
        "weight",
        ("lstm",),
        gates_in_order((0, 3, 1, 2)),
        "the gates are in the order i, o, f, g",
        "split PyTorch's weights into the gates i, f, g, o, in that order",
        LSTM,
    ),
    Trap(
        "lstm-forget-bias-added",
        "weight",
        ("lstm",),
        forget_bias_added,
        "the forget gate's bias is one more than PyTorch's",
        "write PyTorch's bias as it is, and add nothing to the forget gate's part",
        "Jozefowicz et al. 2015, section 2.2",
    ),
    Trap(
        "attention-qkv-order",
        "weight",
        ("attention",),
        thirds_in_another_order,
        "query, key and value are in another order",
        "split PyTorch's packed tensor into query, key and value, in that order",
        "torch.nn.MultiheadAttention, flax.nnx.MultiHeadAttention",
    ),
    Trap(
        "attention-heads-interleaved",
        "weight",
        ("attention",),
        heads_interleaved,
        "the heads were split the other way: depth before heads",
        "reshape the kernel to (in, heads, depth), heads before depth",
        "torch.nn.MultiheadAttention, flax.nnx.MultiHeadAttention",
    ),
    Trap(
        "kernel-groups-shuffled",
        "weight",
        CONV,
        groups_shuffled,
        "the output channels are grouped in another order",
        "keep PyTorch's order of the output channels, one group after the other",
        "torch.nn.Conv2d: groups",
    ),
    Trap(
        "norm-scale-off-by-one",
        "weight",
        ("affine", "batch_norm"),
        lambda w: [w + 1, w - 1],
        "the scale is one off, as where a layer multiplies by 1 + scale",
        "write PyTorch's weight as it is",
        "flax.linen.RMSNorm: use_scale",
    ),
    Trap(
        "bn-variance-is-deviation",
        "weight",
        ("batch_norm",),
        as_deviation,
        "the variance was stored as a standard deviation, or as its inverse",
        "write running_var as it is",
        "torch.nn.BatchNorm2d, flax.linen.BatchNorm",
    ),
    Trap(
        "embedding-padding-row",
        "weight",
        ("embedding",),
        None,
        "the row of padding is not zero",
        "write PyTorch's tensor, whose row at padding_idx is zero",
        "torch.nn.Embedding: padding_idx",
        related=differs_in_one_row,
    ),
    Trap(
        "weight-scaled",
        "weight",
        (),
        None,
        "the tensor is a multiple of PyTorch's",
        "write PyTorch's tensor without a factor",
        LOADING,
        related=is_scaled,
    ),
    Trap(
        "rows-permuted",
        "weight",
        (),
        None,
        "the outputs are in another order",
        "keep PyTorch's order of the outputs",
        "torch.nn.Linear",
        related=is_permuted(0),
    ),
    Trap(
        "columns-permuted",
        "weight",
        (),
        None,
        "the inputs are in another order, as after a channels-last flatten",
        "keep PyTorch's order of the inputs, and transpose to channels first before the flatten",
        GUIDE,
        related=is_permuted(1),
    ),
)

EXTRA_BIAS = "bias-added"
STRUCTURE, NOT_MOVED, EXCHANGED = "weights-do-not-fit", "weights-not-moved", "weights-exchanged"
BIAS, SORTED, UNTIED, SECOND_BIAS = "bias-missing", "layers-in-sorted-order", "weights-not-tied", "recurrent-bias-lost"

# Mistakes that show only in several tensors: by the roles of the two exchanged tensors in their layer, or in all
# layers.
SEVERAL_TENSORS = (
    Trap(
        STRUCTURE,
        "weight",
        (),
        None,
        "tensors of other shapes, or too few",
        "give the port's layer the sizes and options of PyTorch's layer",
        LOADING,
    ),
    Trap(
        BIAS,
        "weight",
        (),
        None,
        "the layer has no bias",
        "pass use_bias=True",
        "torch.nn.Linear, flax.linen.Dense: use_bias",
    ),
    Trap(
        EXTRA_BIAS,
        "weight",
        (),
        None,
        "the port's layer has a bias, PyTorch's has none",
        "pass use_bias=False",
        "torch.nn.Linear: bias; flax.nnx.Linear, flax.linen.Dense: use_bias=True by default",
    ),
    Trap(NOT_MOVED, "weight", (), None, "other weights altogether", "move PyTorch's weights with parity.move", LOADING),
    Trap(EXCHANGED, "weight", (), None, "two tensors were exchanged", "write each tensor to its own place", LOADING),
    Trap(
        "bn-mean-variance-exchanged",
        "weight",
        ("batch_norm",),
        None,
        "the running mean and variance were exchanged",
        "write running_mean to mean, and running_var to var",
        "torch.nn.BatchNorm2d, flax.linen.BatchNorm",
    ),
    Trap(
        "norm-scale-bias-exchanged",
        "weight",
        ("batch_norm", "affine"),
        None,
        "scale and bias were exchanged",
        "write PyTorch's weight to scale, and its bias to bias",
        "torch.nn.LayerNorm, flax.linen.LayerNorm",
    ),
    Trap(
        SORTED,
        "weight",
        (),
        None,
        "the layers were taken in the order of their sorted names, layers_10 before layers_2",
        "pair the layers by name, or sort them by number",
        "jax.tree_util",
    ),
    Trap(
        UNTIED,
        "weight",
        (),
        None,
        "the port has two tensors where both layers share one in PyTorch",
        "use one variable for both layers",
        "Press and Wolf 2017",
    ),
    Trap(
        SECOND_BIAS,
        "weight",
        ("lstm", "gru"),
        None,
        "one of PyTorch's two biases was dropped",
        "add the two biases, as ports.weights.fold_recurrent_biases does",
        "torch.nn.LSTM: bias_hh",
    ),
)

# Keys are the two exchanged tensors of a layer.
PAIRS = {
    frozenset(("running_mean", "running_var")): "bn-mean-variance-exchanged",
    frozenset(("weight", "bias")): "norm-scale-bias-exchanged",
}

"""Functions that both Flax ports share; images are NHWC. Read beside pytorch.py."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array as JaxArray
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ports.layers.checks import require_length, require_lengths

AnyArray = JaxArray | np.ndarray
Features = Float[Array, "batch height width channels"]


def resize_bilinear(x: Features, size: tuple[int, int]) -> Float[Array, "batch _ _ channels"]:
    """`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, for any sizes.

    (`jax.image.resize` averages when it shrinks, unless `antialias=False`. It rounds positions differently from
    PyTorch, which in float32 is three times as far off.) Computes in float32 at least.
    """
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (_weights(a, b, wide) for a, b in zip(x.shape[1:3], size, strict=True))
    x = jnp.einsum("ih,bhwc->biwc", rows, x.astype(wide), precision="highest")
    x = jnp.einsum("jw,biwc->bijc", columns, x, precision="highest")
    return x.astype(dtype)


def _weights(given: int, wanted: int, dtype: np.dtype) -> np.ndarray:
    """Return the weight of each given pixel in each wanted pixel along an axis: (wanted, given).

    Positions are those of PyTorch's area_pixel_compute_source_index, in its precision.
    """
    scale = np.asarray(given, dtype) / np.asarray(wanted, dtype)
    half = np.asarray(0.5, dtype)
    at = np.maximum(scale * (np.arange(wanted).astype(dtype) + half) - half, 0)
    before = np.minimum(at.astype(int), given - 1)
    after = np.minimum(before + 1, given - 1)
    part = np.clip(at - before.astype(dtype), 0, 1)
    weights = np.zeros((wanted, given), dtype)
    weights[np.arange(wanted), before] += 1 - part
    weights[np.arange(wanted), after] += part
    return weights


def lengths_of(
    name: str, tokens: Int[AnyArray, "batch length"], lengths: Int[AnyArray, " batch"] | None, padding: int
) -> Int[Array, " batch"]:
    """Return the lengths of texts: the given ones, or otherwise up to the last token that is not padding.

    Args:
        name: of the network, for errors.

    Raises:
        UserError: a text without tokens, or a length that no text can have, unless tracing hides its value.
    """
    require_length(name, tokens.shape[1])
    if lengths is None:
        lengths = ((tokens != padding) * jnp.arange(1, tokens.shape[1] + 1)).max(axis=1)
    if not isinstance(lengths, Tracer):
        require_lengths(name, np.asarray(lengths).tolist(), tokens.shape)
    return jnp.asarray(lengths)

"""Names of PyTorch's functions, grouped by the mistakes that they share. `add` is `a + b`."""

from __future__ import annotations

RELU, ADD = ("relu", "relu_"), ("add", "add_", "__add__", "__iadd__", "__radd__")
GELU = ("gelu",)
SCALE = ("mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__", "true_divide")
CLAMP = ("clamp", "clip", "clamp_")
MAX_POOL, AVG_POOL = ("max_pool1d", "max_pool2d", "max_pool3d"), ("avg_pool1d", "avg_pool2d", "avg_pool3d")
RESIZE = ("interpolate",)
ATTENTION, RECURRENT = ("scaled_dot_product_attention",), ("lstm", "gru", "rnn_tanh", "rnn_relu")
FOURIER = tuple(f"fft_{kind}{axes}" for kind in ("fft", "ifft", "rfft", "irfft") for axes in ("", "2", "n"))

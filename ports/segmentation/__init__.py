"""Networks that classify every pixel: `spec` describes them, `pytorch`, `nnx` and `linen` build them."""

"""Vision Transformers: `spec` describes them, `pytorch`, `nnx` and `linen` build them."""

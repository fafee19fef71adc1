"""One family of residual networks: `spec` describes them, `pytorch`, `nnx` and `linen` build them."""

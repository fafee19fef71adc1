"""Residual stacks of recurrent layers: `spec` describes them, `pytorch`, `nnx` and `linen` build them."""

"""Decoders of Llama's kind: `spec` describes them, `pytorch`, `nnx` and `linen` build them."""

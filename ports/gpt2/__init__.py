"""GPT-2: `spec` describes the networks, `pytorch`, `nnx` and `linen` build them."""

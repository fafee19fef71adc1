"""Reads transformers' config.json of GPT-2 as the fields of a `GPT2Spec`. No framework is imported.

Source: transformers' configuration_gpt2.py.
"""

from __future__ import annotations

from typing import Any

from ports.config import MOST_BLOCKS, Fixed, Keys, Reader

DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
FIXED = (
    Fixed("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "the ports compute GELU from tanh alone"),
    Fixed("layer_norm_epsilon", (1e-5,), "the ports compute no other"),
    Fixed("scale_attn_weights", (True,), "the ports divide by the root of a head's width"),
    Fixed("scale_attn_by_inverse_layer_idx", (False,), "the ports scale every block alike"),
    Fixed("add_cross_attention", (False,), "the ports have no cross-attention"),
    Fixed("tie_word_embeddings", (True,), "the ports' output layer has the weights of the embedding"),
)


def fields(keys: Keys) -> dict[str, Any]:
    """Return the fields of a description."""
    width = keys.count("n_embd")
    if keys.count("n_inner", null=4 * width) != 4 * width:
        keys.refuse("n_inner", f"null or 4 times n_embd, {4 * width}: the ports compute no other")
    return {
        "width": width,
        "heads": keys.count("n_head"),
        "depth": keys.count("n_layer", most=MOST_BLOCKS),
        "vocabulary": keys.count("vocab_size"),
        "length": keys.count("n_positions"),
    }


# The published files of GPT-2 have the tensors of the base model: the output layer has those of the embedding.
READER = Reader(DEFAULTS, {"gpt2": ("GPT2LMHeadModel", "GPT2Model")}, fields, FIXED, ALIASES)

"""Reads transformers' config.json of Llama, Qwen 2 and Mistral as the fields of a `LlamaSpec`. No framework is loaded.

Sources: transformers' configuration_llama.py, configuration_qwen2.py, configuration_mistral.py, modeling_rope_utils.py.
"""

from __future__ import annotations

from typing import Any

from ports.config import MOST_BLOCKS, Fixed, Keys, Reader, shown
from ports.llama.spec import RopeScaling

# Transformers 4 has `rope_theta` and `rope_scaling`, transformers 5 has both in `rope_parameters`.
SHARED = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "head_dim": None,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        **SHARED,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2": {
        **SHARED,
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    },
    "mistral": {
        **SHARED,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
}
WITH_BIAS = "use_sliding_window"  # a key that Qwen 2 alone has
FIXED = (
    Fixed("hidden_act", ("silu", "swish"), "the ports compute no other activation"),
    Fixed("attention_bias", (False,), "the ports have no bias in o_proj"),
    Fixed("mlp_bias", (False,), "the ports have no biases in the MLP"),
    Fixed("partial_rotary_factor", (None, 1), "the ports turn all features of a head"),
)
# The keys of `rope_parameters` and `rope_scaling`; `type` is the older name of `rope_type`.
ROPE = {
    "rope_type": None,
    "type": None,
    "rope_theta": None,
    "partial_rotary_factor": None,
    "factor": None,
    "low_freq_factor": None,
    "high_freq_factor": None,
    "original_max_position_embeddings": None,
}
LENGTH = "original_max_position_embeddings"
TYPES = ("default", "llama3")
NO_WINDOW = "the ports let each token look at all tokens before it"


def fields(keys: Keys) -> dict[str, Any]:
    """Return the fields of a description."""
    width, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    depth = keys.count("num_hidden_layers", most=MOST_BLOCKS)
    if keys.value("head_dim") is not None and keys.count("head_dim") * heads != width and not keys.problems:
        got = f"{keys.value('head_dim')} for {heads} heads and hidden_size {width}"
        keys.refuse("head_dim", "hidden_size / num_attention_heads: the ports compute no other", got)
    _refuse_windows(keys, depth)
    theta, scaling = _rotations(keys)
    return {
        "vocabulary": keys.count("vocab_size"),
        "width": width,
        "heads": heads,
        "kv_heads": keys.count("num_key_value_heads", null=heads),
        "hidden": keys.count("intermediate_size"),
        "depth": depth,
        "theta": theta,
        "scaling": scaling,
        "epsilon": keys.number("rms_norm_eps"),
        "bias": WITH_BIAS in keys,
        "tied": keys.truth("tie_word_embeddings"),
    }


def _refuse_windows(keys: Keys, depth: int) -> None:
    """Refuse attention to a window of the last tokens, if some block has it."""
    if "sliding_window" in keys and WITH_BIAS not in keys and keys.value("sliding_window") is not None:
        keys.refuse("sliding_window", f"null: {NO_WINDOW}")
    if WITH_BIAS not in keys:
        return
    types, first = keys.value("layer_types"), keys.value("max_window_layers")
    used = keys.truth("use_sliding_window") and keys.value("sliding_window") is not None
    if types is not None and types != ["full_attention"] * depth:
        keys.refuse("layer_types", f'{depth} times "full_attention": {NO_WINDOW}')
    elif used and types is None and not (isinstance(first, int) and first >= depth):
        keys.refuse("use_sliding_window", f"false: {NO_WINDOW}")


def _rotations(keys: Keys) -> tuple[float, RopeScaling | None]:
    """Return the base of the rotations' speeds, and how they are scaled."""
    rope = keys.table("rope_scaling" if keys.value("rope_scaling") else "rope_parameters", ROPE)
    if rope is None:
        return keys.number("rope_theta"), None
    theta = keys.number("rope_theta") if rope.value("rope_theta") is None else rope.number("rope_theta")
    rope.require(FIXED)
    for key in rope.tables:
        rope.refuse(key, "one table for all blocks", "a table")
    name = "rope_type" if "rope_type" in rope.given else "type"
    kind = rope.given.get(name, "default")
    if kind not in TYPES:
        rope.refuse(name, f"{' or '.join(TYPES)}: the ports compute no other rotations")
    if kind != "llama3":
        return theta, None
    factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    scaling = RopeScaling(factor, low, high, _first_length(keys, rope))
    if scaling.low >= scaling.high and not rope.problems:
        rope.refuse("high_freq_factor", f"more than low_freq_factor, which is {scaling.low}")
    return theta, scaling


def _first_length(keys: Keys, rope: Keys) -> int:
    """Return the longest text of the first training, before the rotations were scaled."""
    own, beside = (table.value(LENGTH) for table in (rope, keys))
    if own is None and beside is None:
        return keys.count("max_position_embeddings")
    if own is not None and beside is not None and own != beside:
        rope.refuse(LENGTH, f"{shown(beside)}, as the key outside of the table has it")
    return keys.count(LENGTH) if own is None else rope.count(LENGTH)


READER = Reader(
    DEFAULTS,
    architectures={
        "llama": ("LlamaForCausalLM",),
        "qwen2": ("Qwen2ForCausalLM",),
        "mistral": ("MistralForCausalLM",),
    },
    fields=fields,
    fixed=FIXED,
)

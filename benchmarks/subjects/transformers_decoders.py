"""Transformers' classes of this package's decoders, with their own random weights and without dropout."""

from __future__ import annotations

import contextlib
from typing import Any


def library() -> Any:
    """Return transformers, which imports torchvision if that is installed."""
    from benchmarks.subjects.torchvision_import import torchvision

    with contextlib.suppress(ImportError):
        torchvision()
    import transformers

    return transformers


def gpt2_fields(spec: Any) -> dict[str, Any]:
    """Return the fields of transformers' `GPT2Config` of a description, without dropout."""
    sizes = {"vocab_size": spec.vocabulary, "n_positions": spec.length, "n_embd": spec.width}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return {**sizes, "n_layer": spec.depth, "n_head": spec.heads, **dropout}


def original(spec: Any, **changes: Any) -> Any:
    """Return transformers' network of a description: `GPT2LMHeadModel`, `LlamaForCausalLM` or `Qwen2ForCausalLM`.

    Args:
        spec: a `GPT2Spec` or a `LlamaSpec`.
        changes: further fields of transformers' configuration.
    """
    classes = library()
    if hasattr(spec, "length"):  # learned positions: GPT-2
        return classes.GPT2LMHeadModel(classes.GPT2Config(**gpt2_fields(spec), **changes))
    rope = {"rope_type": "default", "rope_theta": spec.theta}
    if spec.scaling is not None:
        rope |= {"rope_type": "llama3", "factor": spec.scaling.factor, "low_freq_factor": spec.scaling.low}
        rope |= {"high_freq_factor": spec.scaling.high, "original_max_position_embeddings": spec.scaling.length}
    options = dict(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.hidden,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=131072,
        rms_norm_eps=spec.epsilon,
        tie_word_embeddings=spec.tied,
        rope_parameters=rope,
        rope_theta=spec.theta,  # as releases before 5 take it
        **changes,
    )
    kind = "Qwen2" if spec.bias else "Llama"
    return getattr(classes, f"{kind}ForCausalLM")(getattr(classes, f"{kind}Config")(**options))

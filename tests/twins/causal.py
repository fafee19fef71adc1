"""Language models that write from left to right."""

from __future__ import annotations

from .building import transformers_pair
from .inputs import placed, text
from .text import ENCODER, WORDS
from .twin import Difference, Twin

# Two heads, so that the square root of a head's width (16) is a whole number, as in the published models.
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": 100}
LLAMA = {**ENCODER, "num_key_value_heads": 2}

XGLM_DROPOUT = Difference(
    "In training PyTorch drops attention weights at the rate attention_dropout; Flax never does",
    "XGLMAttention.forward drops attn_weights (models/xglm/modeling_xglm.py:243)",
    "FlaxXGLMDecoderLayer.__call__ calls self_attn without deterministic, whose default is True"
    " (models/xglm/modeling_flax_xglm.py:349)",
    advice="PyTorch draws 7 dropout masks in a training step, the port 5",
)

TWINS = (
    Twin(
        "gpt2", "transformers", "GPT2LMHeadModel", lambda p: p.GPT2Config(**GPT), placed, transformers_pair, fast=True
    ),
    Twin(
        "gpt-neo",
        "transformers",
        "GPTNeoForCausalLM",
        lambda p: p.GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            **WORDS,
        ),
        placed,
        transformers_pair,
    ),
    Twin(
        "gptj",
        "transformers",
        "GPTJForCausalLM",
        lambda p: p.GPTJConfig(**GPT, rotary_dim=8),
        placed,
        transformers_pair,
    ),
    Twin(
        "bloom",
        "transformers",
        "BloomModel",
        lambda p: p.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=100),
        text,
        transformers_pair,
    ),
    Twin(
        "opt",
        "transformers",
        "OPTForCausalLM",
        lambda p: p.OPTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_dim=64,
            word_embed_proj_dim=32,
            **WORDS,
        ),
        placed,
        transformers_pair,
    ),
    Twin(
        "xglm",
        "transformers",
        "XGLMForCausalLM",
        lambda p: p.XGLMConfig(d_model=32, num_layers=2, attention_heads=4, ffn_dim=64, **WORDS),
        placed,
        transformers_pair,
        differences=(XGLM_DROPOUT,),
    ),
    Twin("llama", "transformers", "LlamaForCausalLM", lambda p: p.LlamaConfig(**LLAMA), placed, transformers_pair),
    Twin(
        "mistral", "transformers", "MistralForCausalLM", lambda p: p.MistralConfig(**LLAMA), placed, transformers_pair
    ),
    Twin(
        "gemma",
        "transformers",
        "GemmaForCausalLM",
        lambda p: p.GemmaConfig(**LLAMA, head_dim=8),
        placed,
        transformers_pair,
    ),
)

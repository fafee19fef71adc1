"""Encoders of text."""

from __future__ import annotations

from functools import partial

from .building import transformers_pair
from .inputs import mask, placed, text, typed
from .twin import Difference, Twin

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 100, "max_position_embeddings": 40}
ENCODER = {**WIDTH, **WORDS}

NO_HEAD_MASK = {"head_mask": None}


def both() -> dict:
    """Text with types and positions."""
    return {**placed(), "token_type_ids": mask(padded=5)}


# RoBERTa counts positions from the number of its padding on.
from_padding = partial(placed, first=2)

POSITIONS = Difference(
    "Without position_ids PyTorch counts positions from padding_idx + 1 on and gives padding the position padding_idx;"
    " the Flax module counts from 0",
    "RobertaEmbeddings.forward makes them from input_ids (models/roberta/modeling_roberta.py:87)",
    "FlaxRobertaModule.__call__ takes arange (models/roberta/modeling_flax_roberta.py:952);"
    " FlaxRobertaPreTrainedModel.__call__ around it makes them as PyTorch does (line 845)",
    layers="embeddings",
)

TWINS = (
    Twin("bert", "transformers", "BertModel", lambda p: p.BertConfig(**ENCODER), typed, transformers_pair, fast=True),
    Twin(
        "albert",
        "transformers",
        "AlbertModel",
        lambda p: p.AlbertConfig(**ENCODER, embedding_size=16),
        typed,
        transformers_pair,
    ),
    Twin(
        "roberta",
        "transformers",
        "RobertaModel",
        lambda p: p.RobertaConfig(**ENCODER),
        from_padding,
        transformers_pair,
    ),
    Twin(
        "roberta-unplaced",
        "transformers",
        "RobertaModel",
        lambda p: p.RobertaConfig(**ENCODER),
        text,
        transformers_pair,
        differences=(POSITIONS,),
        fast=True,
    ),
    Twin(
        "roberta-prelayernorm",
        "transformers",
        "RobertaPreLayerNormModel",
        lambda p: p.RobertaPreLayerNormConfig(**ENCODER),
        from_padding,
        transformers_pair,
    ),
    Twin(
        "xlm-roberta",
        "transformers",
        "XLMRobertaModel",
        lambda p: p.XLMRobertaConfig(**ENCODER),
        from_padding,
        transformers_pair,
    ),
    Twin(
        "distilbert",
        "transformers",
        "DistilBertModel",
        lambda p: p.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **WORDS),
        text,
        transformers_pair,
    ),
    Twin(
        "electra",
        "transformers",
        "ElectraModel",
        lambda p: p.ElectraConfig(**ENCODER, embedding_size=24),
        both,
        transformers_pair,
    ),
    Twin(
        "roformer",
        "transformers",
        "RoFormerModel",
        lambda p: p.RoFormerConfig(**ENCODER),
        typed,
        transformers_pair,
        added=NO_HEAD_MASK,
    ),
    Twin(
        "big-bird",
        "transformers",
        "BigBirdModel",
        # Block-sparse attention draws its blocks; texts as short as these get the full one in PyTorch anyway.
        lambda p: p.BigBirdConfig(**ENCODER, attention_type="original_full"),
        both,
        transformers_pair,
        added=NO_HEAD_MASK,
    ),
    Twin(
        "clip-text",
        "transformers",
        "CLIPTextModel",
        lambda p: p.CLIPTextConfig(**ENCODER, projection_dim=16, bos_token_id=0, eos_token_id=2),
        placed,
        transformers_pair,
    ),
)

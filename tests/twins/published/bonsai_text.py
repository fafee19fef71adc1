"""jax-ml/bonsai: networks that read and hear, in NNX."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..twin import Difference
from .bonsai_images import BONSAI, MODELS
from .differences import gelu
from .inputs import numbers, tokens
from .port import Built, Published

WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "vocab_size": 50,
    "num_mel_bins": 8,
    "max_source_positions": 10,
}
UMT5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
LENGTH = 8


def qwen3(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.qwen3.modeling")
    config = ours.Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=1_000_000.0,
        tie_word_embeddings=False,
    )
    same = theirs.ModelConfig(2, 64, 32, 48, 4, 8, 2, 1_000_000, 8.0, 1e4, 1e-6, False)

    def call(model: Any, ids: Any) -> Any:
        """Call the port with a new cache, as its own generation does."""
        cache = theirs.init_cache(same, 2, LENGTH, 0, jnp.float32)
        return model(ids, cache=cache, segment_ids=jnp.ones_like(ids))

    port = theirs.Qwen3(same, rngs=nnx.Rngs(0))
    return Built(ours.Qwen3ForCausalLM(config), port, (tokens(64, 2, LENGTH),), {"flax_call": call})


def mamba2(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.mamba2.modeling")
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "state_size": 8,
        "head_dim": 8,
        "chunk_size": 4,
        "num_hidden_layers": 2,
    }
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = ours.Mamba2Config(**sizes, **special, num_heads=8, n_groups=1, tie_word_embeddings=True)
    port = theirs.Mamba2ForCausalLM(theirs.ModelConfig(**sizes), rngs=nnx.Rngs(0))
    return Built(ours.Mamba2ForCausalLM(config), port, (tokens(60, 2, LENGTH),))


def umt5_encoder(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.umt5.modeling")
    port = theirs.UMT5EncoderModel(theirs.ModelConfig(**UMT5), rngs=nnx.Rngs(0))
    mask = np.ones((2, LENGTH), np.int32)
    mask[1, 5:] = 0
    options = {"keywords": {"attention_mask": mask}}
    return Built(ours.UMT5EncoderModel(ours.UMT5Config(**UMT5)), port, (tokens(50, 2, LENGTH),), options)


def umt5(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.umt5.modeling")
    port = theirs.UMT5Model(theirs.ModelConfig(**UMT5, dropout_rate=0.0), rngs=nnx.Rngs(0))
    reference = ours.UMT5Model(ours.UMT5Config(**UMT5, dropout_rate=0.0))
    options = {"keywords": {"decoder_input_ids": tokens(50, 2, 5, seed=1)}}
    return Built(reference, port, (tokens(50, 2, LENGTH),), options)


def whisper(part: str) -> tuple[Any, Any]:
    """Return PyTorch's encoder or decoder of a small Whisper, and the port's."""
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.whisper.modeling")
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = ours.WhisperConfig(**WHISPER, **special, max_target_positions=12)
    same = dataclasses.replace(theirs.ModelConfig.whisper_tiny(), **WHISPER, max_length=12)
    pytorch = import_module("transformers.models.whisper.modeling_whisper")
    return getattr(pytorch, part)(config), getattr(theirs, part)(same, rngs=nnx.Rngs(0))


def whisper_encoder(clones: Path) -> Built:
    return Built(*whisper("WhisperEncoder"), (numbers(2, 8, 20),))


def whisper_decoder(clones: Path) -> Built:
    mask = np.tril(np.ones((LENGTH, LENGTH), bool))[None, None]

    def torch_call(model: Any, ids: Any, heard: Any) -> Any:
        return model(input_ids=ids, encoder_hidden_states=heard, use_cache=False)

    def flax_call(model: Any, ids: Any, heard: Any) -> Any:
        return model(ids, jnp.asarray(mask), heard, None, False)

    inputs = (tokens(50, 2, LENGTH), numbers(2, 10, 16))
    return Built(*whisper("WhisperDecoder"), inputs, {"torch_call": torch_call, "flax_call": flax_call})


def gemma3(clones: Path) -> Built:
    ours, theirs = import_module("transformers"), import_module(f"{MODELS}.gemma3.modeling")
    sight, words = {"image_size": 32, "patch_size": 8}, {"vocab_size": 64, "head_dim": 8}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = ours.Gemma3TextConfig(
        **sizes,
        **words,
        num_key_value_heads=2,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    )
    vision = ours.SiglipVisionConfig(**sizes, **sight, vision_use_head=False)
    config = ours.Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, image_token_id=63
    )
    modes = [theirs.AttentionMode.SLIDE, theirs.AttentionMode.FULL]
    same_text = dataclasses.replace(
        theirs.TextConfig.gemma3_4b_it(norm_dtype=jnp.float32),
        **sizes,
        **words,
        num_key_value_heads=2,
        sliding_window=4,
        layer_types=modes,
    )
    same_vision = dataclasses.replace(theirs.VisionConfig.gemma3_4b_it(), **sizes, **sight)
    same = dataclasses.replace(
        theirs.ModelConfig.gemma3_4b_it(norm_dtype=jnp.float32),
        text_config=same_text,
        vision_config=same_vision,
        mm_tokens_per_image=4,
    )
    ids = tokens(60, 2, LENGTH)
    ids[:, 1:5] = 63
    seen = (ids == 63).astype(np.int32)

    def torch_call(model: Any, ids: Any, image: Any) -> Any:
        kinds = (ids == 63).long()
        return model(input_ids=ids, pixel_values=image, token_type_ids=kinds, mm_token_type_ids=kinds).logits

    def flax_call(model: Any, ids: Any, image: Any) -> Any:
        """Call the port with a new cache, as its own generation does."""
        cache = theirs.init_cache(same, 2, LENGTH, 0, jnp.float32)
        ones = jnp.ones_like(ids)
        return model(ids, image, cache=cache, segment_ids=ones, token_type_ids=jnp.asarray(seen))

    port = theirs.Gemma3Model(same, rngs=nnx.Rngs(0))
    options = {"torch_call": torch_call, "flax_call": flax_call}
    return Built(ours.Gemma3ForConditionalGeneration(config), port, (ids, numbers(2, 3, 32, 32)), options)


SHARED = Difference(
    "Encoder and decoder share the embedding in PyTorch; in Flax each has one of its own",
    "UMT5Model._tied_weights_keys (models/umt5/modeling_umt5.py:757)",
    "UMT5Stack.__init__ makes one for each stack (bonsai/models/umt5/modeling.py:454)",
    layers="decoder.embed_tokens",
    trap="weights-not-tied",
)
SCALED = Difference(
    "PyTorch scales the embedding by the square root of the width, Flax by its value in bfloat16 (5.65625 for 5.65685)",
    "Gemma3TextScaledWordEmbedding.forward keeps it in the weight's type (models/gemma3/modeling_gemma3.py:97 and 100)",
    "Gemma3TextScaledWordEmbedding.__init__ rounds it (bonsai/models/gemma3/modeling.py:492)",
    layers="model",
)
HEARD = gelu(
    "(the network)",
    "WhisperEncoder.forward calls nn.functional.gelu (models/whisper/modeling_whisper.py:617 and 618)",
    "WhisperEncoder.__call__ calls jax.nn.gelu (bonsai/models/whisper/modeling.py:168 and 169)",
)

PORTS = (
    Published("bonsai-qwen3", BONSAI, "bonsai.models.qwen3.modeling.Qwen3", "transformers.Qwen3ForCausalLM", qwen3),
    Published(
        "bonsai-mamba2",
        BONSAI,
        "bonsai.models.mamba2.modeling.Mamba2ForCausalLM",
        "transformers.Mamba2ForCausalLM",
        mamba2,
    ),
    Published(
        "bonsai-umt5-encoder",
        BONSAI,
        "bonsai.models.umt5.modeling.UMT5EncoderModel",
        "transformers.UMT5EncoderModel",
        umt5_encoder,
    ),
    Published(
        "bonsai-gemma3",
        BONSAI,
        "bonsai.models.gemma3.modeling.Gemma3Model",
        "transformers.Gemma3ForConditionalGeneration",
        gemma3,
        differences=(SCALED,),
    ),
    Published(
        "bonsai-umt5",
        BONSAI,
        "bonsai.models.umt5.modeling.UMT5Model",
        "transformers.UMT5Model",
        umt5,
        differences=(SHARED,),
    ),
    Published(
        "bonsai-whisper-encoder",
        BONSAI,
        "bonsai.models.whisper.modeling.WhisperEncoder",
        "transformers.models.whisper.modeling_whisper.WhisperEncoder",
        whisper_encoder,
        differences=(HEARD,),
    ),
    Published(
        "bonsai-whisper-decoder",
        BONSAI,
        "bonsai.models.whisper.modeling.WhisperDecoder",
        "transformers.models.whisper.modeling_whisper.WhisperDecoder",
        whisper_decoder,
    ),
)

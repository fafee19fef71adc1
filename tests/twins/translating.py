"""Models with an encoder and a decoder: text to text, speech to text."""

from __future__ import annotations

from functools import partial

import numpy as np

from .building import transformers_pair
from .inputs import BATCH, TARGET, ids, mask, positions, translated
from .text import WIDTH, WORDS
from .twin import Difference, Twin

SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 100,
}
BART = {**SIZES, "max_position_embeddings": 40}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}


def cross_dropout(pytorch: str, flax: str) -> Difference:
    """Return the difference of T5's family, which has the same code in several files."""
    return Difference(
        "In training PyTorch drops the weights of cross-attention at the rate dropout_rate; Flax never does",
        f"{pytorch}, forward drops attn_weights",
        f"{flax}, __call__ calls EncDecAttention without deterministic, whose default is True",
        advice="PyTorch draws 24 dropout masks in a training step, the port 22",
    )


T5_LAYER = "FlaxT5LayerCrossAttention (models/t5/modeling_flax_t5.py:522)"
T5_DROPOUT = cross_dropout("T5Attention (models/t5/modeling_t5.py:562)", T5_LAYER)
MT5_DROPOUT = cross_dropout("MT5Attention (models/mt5/modeling_mt5.py:437)", f"FlaxMT5Model is FlaxT5Model: {T5_LAYER}")
LONGT5_DROPOUT = cross_dropout(
    "LongT5Attention (models/longt5/modeling_longt5.py:539)",
    "FlaxLongT5LayerCrossAttention (models/longt5/modeling_flax_longt5.py:1243)",
)

WAV2VEC2_DROPOUT = Difference(
    "In training PyTorch drops values within the layers of the encoder; Flax drops only what enters the first",
    "Wav2Vec2EncoderLayerStableLayerNorm.forward calls dropout (models/wav2vec2/modeling_wav2vec2.py:667)",
    "FlaxWav2Vec2StableLayerNormEncoder.__call__ calls self.layers without deterministic, whose default is True"
    " (models/wav2vec2/modeling_flax_wav2vec2.py:677)",
    advice="PyTorch draws 9 dropout masks in a training step, the port 1",
)

# PyTorch's classes count positions themselves; the Flax modules are told them.
PLACED = {"position_ids": positions(), "decoder_position_ids": positions(TARGET)}


def spoken() -> dict[str, np.ndarray]:
    """A spectrogram of 8 bands and 40 frames, and a target."""
    return {
        "input_features": np.random.default_rng(1).standard_normal((BATCH, 8, 40)),
        "decoder_input_ids": ids(TARGET),
        "decoder_attention_mask": mask(TARGET, padded=2),
        "decoder_position_ids": positions(TARGET),
    }


def sound() -> dict[str, np.ndarray]:
    """Two pieces of sound, and which of their 49 frames training hides: PyTorch draws them where they are not given."""
    rng = np.random.default_rng(1)
    return {"input_values": rng.standard_normal((BATCH, 400)), "mask_time_indices": rng.random((BATCH, 49)) < 0.3}


TWINS = (
    Twin(
        "bart",
        "transformers",
        "BartModel",
        lambda p: p.BartConfig(**BART, **SPECIAL),
        translated,
        transformers_pair,
        added=PLACED,
    ),
    Twin(
        "mbart",
        "transformers",
        "MBartModel",
        lambda p: p.MBartConfig(**BART, pad_token_id=1),
        translated,
        transformers_pair,
        added=PLACED,
    ),
    Twin(
        "blenderbot",
        "transformers",
        "BlenderbotModel",
        lambda p: p.BlenderbotConfig(**BART, **SPECIAL),
        translated,
        transformers_pair,
        added=PLACED,
    ),
    Twin(
        "blenderbot-small",
        "transformers",
        "BlenderbotSmallModel",
        lambda p: p.BlenderbotSmallConfig(**BART, **SPECIAL),
        translated,
        transformers_pair,
        added=PLACED,
    ),
    Twin(
        "pegasus",
        "transformers",
        "PegasusModel",
        lambda p: p.PegasusConfig(**BART, pad_token_id=1),
        translated,
        transformers_pair,
        added=PLACED,
    ),
    Twin(
        "marian",
        "transformers",
        "MarianMTModel",
        lambda p: p.MarianConfig(**BART, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1),
        translated,
        transformers_pair,
        added=PLACED,
    ),
    Twin(
        "t5",
        "transformers",
        "T5ForConditionalGeneration",
        lambda p: p.T5Config(**T5),
        translated,
        transformers_pair,
        differences=(T5_DROPOUT,),
        fast=True,
    ),
    Twin(
        "mt5",
        "transformers",
        "MT5ForConditionalGeneration",
        lambda p: p.MT5Config(**T5),
        translated,
        transformers_pair,
        differences=(MT5_DROPOUT,),
    ),
    Twin(
        "longt5",
        "transformers",
        "LongT5ForConditionalGeneration",
        lambda p: p.LongT5Config(**T5, local_radius=3),
        # Both mask padding by adding -1e10, beside which the scores of a block without words keep six digits.
        partial(translated, padded=0),
        transformers_pair,
        differences=(LONGT5_DROPOUT,),
    ),
    Twin(
        "whisper",
        "transformers",
        "WhisperForConditionalGeneration",
        lambda p: p.WhisperConfig(**SIZES, num_mel_bins=8, max_source_positions=20, max_target_positions=20, **SPECIAL),
        spoken,
        transformers_pair,
        shape=(1, 8, 40),
    ),
    Twin(
        "wav2vec2",
        "transformers",
        "Wav2Vec2Model",
        lambda p: p.Wav2Vec2Config(
            **WIDTH,
            vocab_size=WORDS["vocab_size"],
            conv_dim=(16, 16),
            conv_stride=(4, 2),
            conv_kernel=(8, 3),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,  # the Flax class has no other
        ),
        sound,
        transformers_pair,
        shape=(1, 400),
        differences=(WAV2VEC2_DROPOUT,),
    ),
)

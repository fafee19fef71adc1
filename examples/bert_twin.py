# %% [markdown]
# # BERT of transformers against its Flax twin
#
# transformers published BERT twice, in PyTorch and in Flax. Does the second compute what the first computes?
#
# transformers 4 is the last release with Flax classes: `make setup-twins` sets up an environment with it,
# and `.venv-twins/bin/python examples/bert_twin.py` runs this there.

# %%
from __future__ import annotations

import tempfile

import numpy as np
import torch
import transformers

import parity

transformers.logging.set_verbosity_error()

# %% [markdown]
# A small BERT with random weights. For a published one write `BertModel.from_pretrained("bert-base-uncased")`.

# %%
torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
)
torch_model = transformers.BertModel(config)
print(f"{sum(p.numel() for p in torch_model.parameters()):,} parameters")

# %% [markdown]
# transformers itself brings the weights over: it reads PyTorch's files into the Flax class.

# %%
with tempfile.TemporaryDirectory() as folder:
    torch_model.save_pretrained(folder)
    flax_model = transformers.FlaxBertModel.from_pretrained(folder, from_pt=True)

# %% [markdown]
# Both are called with the same keywords. The second text ends in two tokens of padding.

# %%
inputs = {
    "input_ids": np.random.default_rng(0).integers(5, 100, (2, 10)),
    "attention_mask": np.array([[1] * 10, [1] * 8 + [0] * 2]),
}
report = parity.check(torch_model, flax_model, keywords=inputs)

# %% [markdown]
# The report says how many layers were paired, how far apart the two are in float64, and what was not exercised.

# %%
model = report.models[0]
print(f"{len(model.pairing)} layers are paired")
for quantity, distance in model.largest["linen"].items():
    print(f"{quantity:18} differs by {distance:.1e} at most")
for line in model.unexercised:
    print(f"not exercised: {line}")
print(f"parity: {report.ok}")

# %% [raw]
# It prints:
#
#     37,856 parameters
#     21 layers are paired
#     output.eval        differs by 2.8e-16 at most
#     layer.eval         differs by 3.1e-16 at most
#     output.train       differs by 3.0e-16 at most
#     layer.train        differs by 3.4e-16 at most
#     loss               differs by 8.7e-15 at most
#     gradient.parameter differs by 1.4e-15 at most
#     gradient.input     differs by 0.0e+00 at most
#     statistics         differs by 0.0e+00 at most
#     training.parameter differs by 3.3e-14 at most
#     training.state     differs by 5.1e-16 at most
#     not exercised: PyTorch: arguments left at their defaults: token_type_ids, position_ids, head_mask,
#       inputs_embeds, encoder_hidden_states, encoder_attention_mask, past_key_values, use_cache, output_attentions,
#       output_hidden_states, return_dict, cache_position
#     not exercised: Flax: arguments left at their defaults: token_type_ids, position_ids, head_mask,
#       encoder_hidden_states, encoder_attention_mask, params, dropout_rng, output_attentions, output_hidden_states,
#       return_dict, past_key_values
#     parity: True

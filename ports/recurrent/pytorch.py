"""Residual stacks of recurrent layers in PyTorch. Read beside nnx.py and linen.py: the same functions and classes.

The layers are `nn.LSTM` and `nn.GRU` of one level each, so that the sums can be between them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ports.layers.checks import require_length, require_lengths
from ports.recurrent.spec import PADDING, RecurrentSpec

Tokens = Int[Tensor, "batch length"]
Features = Float[Tensor, "batch length _"]
Lengths = Int[Tensor, " batch"]

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU}

torch.fx.wrap("lengths_of")  # a traced network has each of these as one call
torch.fx.wrap("packed")
torch.fx.wrap("padded")


def lengths_of(name: str, tokens: Tokens, lengths: Lengths | None) -> Lengths:
    """Return the lengths of texts, on the CPU: the given ones, or otherwise up to the last token that is not padding.

    Raises:
        UserError: a text without tokens, or a length that no text can have.
    """
    require_length(name, tokens.shape[1])
    if tokens.is_meta:  # a network without values, to look at shapes
        return torch.full(tokens.shape[:1], tokens.shape[1], device="meta")
    if lengths is None:
        ends = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        lengths = ((tokens != PADDING) * ends).amax(dim=1)
    lengths = lengths.cpu()
    require_lengths(name, lengths.tolist(), tokens.shape)
    return lengths


def packed(x: Features, lengths: Lengths) -> PackedSequence | Tensor:
    """Return texts without their padding, as a recurrent layer takes them."""
    if x.is_meta:  # for shapes one step is enough: PyTorch would unroll the layer here
        return x[:, :1]
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def padded(x: PackedSequence | Tensor, length: int) -> Features:
    """Return texts with zeros after them."""
    if isinstance(x, Tensor):
        return x.expand(-1, length, -1)
    return pad_packed_sequence(x, batch_first=True, total_length=length)[0]


class ResidualRNN(nn.Module):
    """Tokens (batch, length) to logits (batch, classes). Padding comes after a text."""

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__()
        self.spec = spec
        layer, width = LAYERS[spec.cell], spec.width
        self.tokens = nn.Embedding(spec.vocabulary, width)
        self.first = layer(width, width, batch_first=True, bidirectional=True)
        self.second = layer(2 * width, width, batch_first=True)
        self.layers = nn.ModuleList(layer(width, width, batch_first=True) for _ in range(spec.depth - 2))
        self.head = nn.Linear(width, spec.num_classes)

    def forward(self, tokens: Tokens, lengths: Lengths | None = None) -> Float[Tensor, "batch classes"]:
        """Classify texts.

        Args:
            lengths: of the texts, in tokens; by default each ends with its last token that is not padding.

        Raises:
            UserError: a text without tokens, or a length that no text can have.
        """
        length = tokens.shape[1]
        lengths = lengths_of(self.spec.name, tokens, lengths)
        real = torch.arange(length, device=tokens.device) < lengths.to(tokens.device).unsqueeze(1)
        x = self.tokens(torch.where(real, tokens, PADDING))
        x = padded(self.first(packed(x, lengths))[0], length)
        x = padded(self.second(packed(x, lengths))[0], length)
        for layer in self.layers:
            y = padded(layer(packed(x, lengths))[0], length)
            x = x + y if self.spec.residual else y
        return self.head(x.sum(dim=1) / lengths.to(x).unsqueeze(1))

"""PyTorch's types of layers, grouped by the mistakes that they share."""

from __future__ import annotations

from torch import nn

LINEAR, EMBEDDING = (nn.Linear,), (nn.Embedding,)
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UP = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORM = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm)
ATTENTION, RECURRENT = (nn.MultiheadAttention,), (nn.LSTM, nn.GRU, nn.RNN)

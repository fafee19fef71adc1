"""Every known mistake that a finding can name, in the order in which they are tried and listed."""

from __future__ import annotations

from parity.traps.layers.convolutions import KERNELS, STRIDES_AND_TRANSPOSED
from parity.traps.layers.gradients import LAYER_GRADIENTS
from parity.traps.layers.norms import BATCH_NORMS, OTHER_NORMS
from parity.traps.layers.sequences import SEQUENCES
from parity.traps.losses import LOSSES
from parity.traps.operations.activations import ACTIVATIONS, COMMON_ACTIVATIONS
from parity.traps.operations.attention_and_inputs import ATTENTION_CALLS, DIRECTIONS_AND_INPUTS
from parity.traps.operations.experts import EXPERTS
from parity.traps.operations.gates_and_sums import GATES, SUMS_TOKENS_AND_POSITIONS
from parity.traps.operations.gradients import OPERATION_GRADIENTS
from parity.traps.operations.heads import HEADS_AND_PARTS, PATCHES_AND_WAVES
from parity.traps.operations.order import ORDER
from parity.traps.operations.own_attention import OWN_ATTENTION
from parity.traps.operations.own_norms import OWN_NORMS
from parity.traps.operations.pools import POOL_SETTINGS, POOLS
from parity.traps.operations.positions import POSITIONS
from parity.traps.operations.rearrangements import JOINS_AND_AXES, REARRANGEMENTS
from parity.traps.operations.recurrent_cells import RECURRENT_CELLS
from parity.traps.operations.resizes_and_means import DEVIATIONS_AND_CORNERS, RESIZES_AND_MEANS
from parity.traps.operations.rotary import PARTIAL_ROTARY, ROTARY
from parity.traps.operations.sampling import SAMPLING
from parity.traps.operations.sums import LOST_SUMMANDS, SUMS_AND_FACTORS
from parity.traps.training.optimizers import OPTIMIZERS
from parity.traps.training.schedules_and_clipping import SCHEDULES_AND_CLIPPING
from parity.traps.weights import SEVERAL_TENSORS, TENSORS

WEIGHTS = (*TENSORS, *SEVERAL_TENSORS)
LAYERS = (*KERNELS, *BATCH_NORMS, *STRIDES_AND_TRANSPOSED, *OTHER_NORMS, *SEQUENCES, *LAYER_GRADIENTS)
IN_PARTS = (*OWN_NORMS, *ROTARY, *PARTIAL_ROTARY, *ATTENTION_CALLS, *OWN_ATTENTION)
ARRANGED = (*HEADS_AND_PARTS, *PATCHES_AND_WAVES, *EXPERTS, *GATES, *POSITIONS, *SUMS_TOKENS_AND_POSITIONS)
# Special mistakes come before general ones: a missing cap before a missing tanh.
OPERATIONS = (
    *(*COMMON_ACTIVATIONS, *IN_PARTS, *ARRANGED),
    *(*LOST_SUMMANDS, *POOLS, *JOINS_AND_AXES, *DEVIATIONS_AND_CORNERS),
    *(*ACTIVATIONS, *SUMS_AND_FACTORS, *OPERATION_GRADIENTS),
    *(*POOL_SETTINGS, *REARRANGEMENTS, *RESIZES_AND_MEANS, *SAMPLING, *DIRECTIONS_AND_INPUTS, *RECURRENT_CELLS, *ORDER),
)
TRAINING = (*OPTIMIZERS, *SCHEDULES_AND_CLIPPING)
TRAPS = (*WEIGHTS, *LAYERS, *OPERATIONS, *LOSSES, *TRAINING)

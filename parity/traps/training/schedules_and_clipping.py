"""Known mistakes of schedules, clipping, accumulation, and of what is trained. A new mistake is a new row."""

from __future__ import annotations

from dataclasses import replace

from parity.traps.training.training_changes import (
    Late,
    LateFromZero,
    Staying,
    averaged,
    clip_each,
    clip_values,
    clip_without_epsilon,
    early,
    idle_trained,
    matrices_only,
    prepared,
    scheduled,
)
from parity.traps.trap import Trap

ANY, SCHEDULE, CLIPPING = ("any optimizer",), ("schedule",), ("clipping",)
RATE = "pass the schedule to the optimizer: a function of the steps done, from 0 (ports.schedules)"

SCHEDULES_AND_CLIPPING = (
    Trap(
        "schedule-missing",
        "training",
        SCHEDULE,
        scheduled(lambda *_: None),
        "the learning rate stays as it is",
        "pass the optimizer a schedule of the number of steps done, from 0, as in ports.schedules",
        "torch.optim.lr_scheduler and optax.schedules",
    ),
    Trap(
        "schedule-late",
        "training",
        SCHEDULE,
        scheduled(lambda _, scheduler: Late(scheduler)),
        "the schedule is one step behind",
        "pass the optimizer a schedule of the number of steps done, from 0, as in ports.schedules",
        "torch.optim.lr_scheduler",
    ),
    Trap(
        "schedule-late-from-zero",
        "training",
        SCHEDULE,
        scheduled(LateFromZero),
        "the schedule is one step behind, and the first step has the rate zero; PyTorch's begins one step further",
        RATE,
        "NVIDIA-NeMo/Megatron-Bridge#5399",
    ),
    Trap(
        "schedule-early",
        "training",
        SCHEDULE,
        scheduled(early),
        "the schedule is one step ahead: the first step has the second rate",
        "pass the optimizer a schedule of the number of steps done, from 0, as in ports.schedules",
        "torch.optim.lr_scheduler",
    ),
    Trap(
        "cosine-stays",
        "training",
        SCHEDULE,
        scheduled(Staying),
        "the cosine stays at its end; PyTorch's rises again",
        "use ports.schedules.cosine_annealing_lr",
        "torch.optim.lr_scheduler.CosineAnnealingLR and optax.cosine_decay_schedule",
    ),
    Trap(
        "clip-missing",
        "training",
        CLIPPING,
        lambda training: replace(training, prepare=lambda _: None),
        "gradients are not clipped",
        "chain ports.optim.clip_grad_norm in front of the optimizer",
        "torch.nn.utils.clip_grad_norm_",
    ),
    Trap(
        "clip-epsilon-missing",
        "training",
        CLIPPING,
        prepared(clip_without_epsilon),
        "the norm is taken as it is; PyTorch adds 1e-6 to it",
        "use ports.optim.clip_grad_norm",
        "torch.nn.utils.clip_grad_norm_ and optax.clip_by_global_norm",
    ),
    Trap(
        "clip-of-values",
        "training",
        CLIPPING,
        prepared(clip_values),
        "every number is clipped; PyTorch scales all gradients by one norm",
        "use ports.optim.clip_grad_norm",
        "torch.nn.utils.clip_grad_norm_ and optax.clip",
    ),
    Trap(
        "clip-of-each-tensor",
        "training",
        CLIPPING,
        prepared(clip_each),
        "every tensor is clipped by its own norm; PyTorch takes one norm of all",
        "use ports.optim.clip_grad_norm",
        "torch.nn.utils.clip_grad_norm_",
    ),
    Trap(
        "accumulation-averages",
        "training",
        ("accumulation",),
        averaged,
        "accumulated gradients are averaged; PyTorch sums them",
        "use ports.optim.accumulate, or divide PyTorch's loss by the number of passes",
        "torch.Tensor.backward and optax.MultiSteps",
    ),
    Trap(
        "idle-parameters-trained",
        "training",
        ANY,
        idle_trained,
        "a parameter without a gradient is moved, by decay; PyTorch leaves it as it is",
        "use ports.optim.trained, or optax.multi_transform with optax.set_to_zero",
        "torch.optim.SGD and optax.masked",
    ),
    Trap(
        "vectors-not-trained",
        "training",
        ANY,
        matrices_only,
        "biases and norms' parameters stay as they are",
        "leave out the mask on the updates",
        "optax.masked",
    ),
)

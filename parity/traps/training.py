"""Known mistakes of training: of optimizers, their order of operations, schedules, clipping, accumulation.

A trap plants its mistake in PyTorch's side of the training. Where the reference, trained so, ends where the port ends,
after one step, after three and after all, that is the diagnosis. A new mistake is a new row of `TRAPS`; one that
changes nothing in a training (of a decay where there is none) explains nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from parity.numerics import bounds
from parity.numerics.bounds import Responses
from parity.numerics.layouts import Tensors
from parity.numerics.quantities import Probe, Training
from parity.running import pytorch as run_pytorch
from parity.traps import mistrained
from parity.traps.mistrained import adagrad, adam, formula, prepared, rmsprop, scheduled, setting, sgd
from ports.optimizers import class_of, having


@dataclass(frozen=True)
class TrainingTrap:
    """One known mistake.

    Attributes:
        where: the classes of `torch.optim` where it can be made; or what else it is about.
        plant: from the training to one with the mistake.
        text: what the port does, and what PyTorch does.
        mend: what to write in the port.
        source: where PyTorch's and optax's sides are written down.
        classes: those of `where`; empty where any optimizer will do.
    """

    name: str
    where: str
    plant: Callable[[Training], Training]
    text: str
    mend: str
    source: str
    classes: tuple[str, ...] = ()


ANY = "any optimizer"
CHAIN = "optax.chain(optax.add_decayed_weights(wd), optax.sgd(…)), or ports.optim.sgd"
RATE = "pass the schedule to the optimizer: a function of the steps done, from 0 (ports.schedules)"
SGD, ADAM, RMSPROP, ADAGRAD = (f"torch.optim.{name}" for name in ("SGD", "Adam", "RMSprop", "Adagrad"))
TRACE, ADAM_OPTAX, RMS_OPTAX = "optax.trace", "optax.scale_by_adam", "optax.scale_by_rms"


# The classes with these options: a formula reads them, a setting changes one.
OF_SGD, OF_ADAM, OF_RMS, OF_GRAD = (having(name) for name in ("dampening", "amsgrad", "alpha", "lr_decay"))


def _row(
    name: str, where: str | tuple[str, ...], plant: Callable[[Training], Training], text: str, mend: str, *source: str
) -> TrainingTrap:
    classes = () if isinstance(where, str) else where
    place = where if isinstance(where, str) else ", ".join(where)
    return TrainingTrap(name, place, plant, text, mend, " and ".join(source), classes)


TRAPS = (
    _row("decay-missing", ANY, setting(weight_decay=0.0), "no weight decay", CHAIN, SGD, "optax.sgd"),
    _row(
        "decay-after-momentum",
        OF_SGD,
        formula(sgd(decay="update")),
        "the decay is added behind the momentum; PyTorch adds it to the gradient",
        CHAIN,
        SGD,
        "optax.add_decayed_weights",
    ),
    _row(
        "decay-not-scaled",
        OF_SGD,
        formula(sgd(decay="unscaled")),
        "the decay is not multiplied by the learning rate",
        CHAIN,
        SGD,
        "optax.add_decayed_weights",
    ),
    _row(
        "decay-on-weights-only",
        ANY,
        mistrained.decay_on_weights_only,
        "no decay on biases and norms; PyTorch decays every parameter of the group",
        "no mask, or two groups in PyTorch",
        SGD,
        "optax.add_decayed_weights",
    ),
    _row(
        "adam-decay-decoupled",
        ("Adam",),
        formula(adam(coupled=False)),
        "the decay is AdamW's; PyTorch's Adam adds it to the gradient",
        "optax.chain(optax.add_decayed_weights(wd), optax.adam(…)), or ports.optim.adam",
        ADAM,
        "optax.adamw",
    ),
    _row(
        "adamw-decay-coupled",
        ("AdamW",),
        formula(adam(coupled=True)),
        "the decay is added to the gradient; AdamW's is not",
        "optax.adamw(…, weight_decay=)",
        "torch.optim.AdamW",
        "Loshchilov and Hutter, arXiv:1711.05101",
    ),
    _row(
        "adamw-decay-1e-4",
        ("AdamW",),
        setting(weight_decay=1e-4),
        "the weight decay is optax's default, 1e-4; PyTorch's is 1e-2",
        "pass weight_decay",
        "torch.optim.AdamW",
        "optax.adamw",
    ),
    _row(
        "momentum-missing", having("momentum"), setting(momentum=0.0), "no momentum", "pass momentum", SGD, "optax.sgd"
    ),
    _row(
        "momentum-is-average",
        OF_SGD,
        formula(sgd(momentum="average")),
        "the momentum is an average; PyTorch's is a sum",
        "optax.trace, not optax.ema",
        SGD,
        "optax.ema",
    ),
    _row(
        "momentum-is-corrected-average",
        OF_SGD,
        formula(sgd(momentum="corrected")),
        "the momentum is an average corrected for its start; PyTorch's is a sum",
        "optax.trace, not optax.ema",
        SGD,
        "optax.ema",
    ),
    _row("nesterov-missing", OF_SGD, setting(nesterov=False), "no Nesterov momentum", "nesterov=True", SGD, TRACE),
    _row(
        "nesterov-added",
        OF_SGD,
        setting(nesterov=True, dampening=0.0),
        "Nesterov momentum",
        "nesterov=False",
        SGD,
        TRACE,
    ),
    _row(
        "dampening-missing",
        OF_SGD,
        setting(dampening=0.0),
        "no dampening, which optax does not have",
        "ports.optim.sgd(dampening=)",
        SGD,
        TRACE,
    ),
    _row(
        "dampening-of-first",
        OF_SGD,
        formula(sgd(momentum="dampened")),
        "the first gradient is dampened too; PyTorch takes it whole",
        "ports.optim.sgd(dampening=)",
        SGD,
    ),
    _row(
        "rate-before-momentum",
        OF_SGD,
        formula(sgd(rate="before")),
        "the learning rate is applied before the momentum: old gradients keep their old rates",
        "scale by the rate last",
        SGD,
        "Sutskever et al., ICML 2013",
    ),
    _row(
        "adam-epsilon-in-root",
        OF_ADAM,
        formula(adam(epsilon="inside")),
        "epsilon stands inside of the root (eps_root)",
        "pass eps, not eps_root",
        ADAM,
        ADAM_OPTAX,
    ),
    _row(
        "adam-epsilon-early",
        OF_ADAM,
        formula(adam(epsilon="early")),
        "epsilon is added before the correction of the bias",
        "optax.adam",
        ADAM,
        "Kingma and Ba, arXiv:1412.6980, section 2",
    ),
    _row(
        "adam-not-corrected",
        OF_ADAM,
        formula(adam(corrected=False)),
        "the averages are not corrected for their start at zero",
        "divide by 1 − β^t, or optax.adam",
        ADAM,
        "Kingma and Ba, arXiv:1412.6980, section 3",
    ),
    _row("adam-epsilon-1e-8", (*OF_ADAM, *OF_RMS), setting(eps=1e-8), "epsilon is the default, 1e-8", "pass eps", ADAM),
    _row(
        "adam-betas-default",
        OF_ADAM,
        setting(betas=(0.9, 0.999)),
        "the betas are the defaults",
        "pass b1, b2",
        ADAM,
    ),
    _row("amsgrad-missing", OF_ADAM, setting(amsgrad=False), "no AMSGrad", "ports.optim.adam(amsgrad=True)", ADAM),
    _row(
        "amsgrad-of-corrected",
        OF_ADAM,
        formula(adam(maximum="corrected")),
        "the maximum is taken of the corrected averages; PyTorch takes it of the raw ones",
        "ports.optim.adam(amsgrad=True)",
        ADAM,
        "optax.amsgrad",
    ),
    _row(
        "rmsprop-epsilon-in-root",
        OF_RMS,
        formula(rmsprop(epsilon="inside")),
        "epsilon stands inside of the root, optax's default",
        "eps_in_sqrt=False",
        RMSPROP,
        RMS_OPTAX,
    ),
    _row(
        "rmsprop-rate-before-momentum",
        OF_RMS,
        formula(rmsprop(rate="before")),
        "the learning rate is applied before the momentum, as in optax.rmsprop",
        "optax.chain(scale_by_rms, trace, scale_by_learning_rate)",
        RMSPROP,
        "optax.rmsprop",
    ),
    _row(
        "rmsprop-of-optax",
        OF_RMS,
        formula(rmsprop(epsilon="inside", rate="before", alpha=0.9)),
        "it is optax.rmsprop with its defaults: decay 0.9, epsilon inside of the root, the rate before the momentum",
        "ports.optim.rmsprop",
        RMSPROP,
        "optax.rmsprop",
    ),
    _row("rmsprop-alpha-0.9", OF_RMS, setting(alpha=0.9), "the decay is optax's default, 0.9", "pass decay", RMSPROP),
    _row("rmsprop-not-centered", OF_RMS, setting(centered=False), "it is not centered", "centered=True", RMSPROP),
    _row(
        "rmsprop-starts-at-one",
        OF_RMS,
        formula(rmsprop(start=1.0)),
        "the average of squares begins at one, as TensorFlow's; PyTorch's at zero",
        "initial_scale=0",
        RMSPROP,
        RMS_OPTAX,
    ),
    _row(
        "adagrad-accumulator-0.1",
        OF_GRAD,
        formula(adagrad(start=0.1)),
        "the sum begins at 0.1, optax's default; PyTorch's at 0",
        "initial_accumulator_value=0",
        ADAGRAD,
        "optax.adagrad",
    ),
    _row(
        "adagrad-of-optax",
        OF_GRAD,
        formula(adagrad(epsilon="inside", start=0.1, eps=1e-7)),
        "it is optax.adagrad with its defaults: the sum begins at 0.1, epsilon is 1e-7 and inside of the root",
        "ports.optim.adagrad",
        ADAGRAD,
        "optax.adagrad",
    ),
    _row(
        "adagrad-epsilon-in-root",
        OF_GRAD,
        formula(adagrad(epsilon="inside")),
        "epsilon stands inside of the root",
        "ports.optim.adagrad",
        ADAGRAD,
        "optax.scale_by_rss",
    ),
    _row("adagrad-epsilon-1e-7", OF_GRAD, setting(eps=1e-7), "epsilon is optax's default, 1e-7", "pass eps", ADAGRAD),
    _row(
        "adagrad-rate-constant",
        OF_GRAD,
        setting(lr_decay=0.0),
        "the learning rate does not fall (lr_decay)",
        "ports.optim.adagrad(lr_decay=)",
        ADAGRAD,
    ),
    _row(
        "schedule-missing",
        "schedule",
        scheduled(lambda *_: None),
        "the learning rate stays as it is",
        RATE,
        "torch.optim.lr_scheduler and optax.schedules",
    ),
    _row(
        "schedule-late",
        "schedule",
        scheduled(lambda _, scheduler: mistrained.Late(scheduler)),
        "the schedule is one step behind",
        RATE,
        "torch.optim.lr_scheduler",
    ),
    _row(
        "schedule-early",
        "schedule",
        scheduled(mistrained.early),
        "the schedule is one step ahead: the first step has the second rate",
        RATE,
        "torch.optim.lr_scheduler",
    ),
    _row(
        "cosine-stays",
        "schedule",
        scheduled(mistrained.Staying),
        "the cosine stays at its end; PyTorch's rises again",
        "ports.schedules.cosine_annealing_lr",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "optax.cosine_decay_schedule",
    ),
    _row(
        "clip-missing",
        "clipping",
        lambda training: replace(training, prepare=lambda _: None),
        "gradients are not clipped",
        "ports.optim.clip_grad_norm in front",
        "torch.nn.utils.clip_grad_norm_",
    ),
    _row(
        "clip-epsilon-missing",
        "clipping",
        prepared(mistrained.clip_without_epsilon),
        "the norm is taken as it is; PyTorch adds 1e-6 to it",
        "ports.optim.clip_grad_norm",
        "torch.nn.utils.clip_grad_norm_",
        "optax.clip_by_global_norm",
    ),
    _row(
        "clip-of-values",
        "clipping",
        prepared(mistrained.clip_values),
        "every number is clipped; PyTorch scales all gradients by one norm",
        "ports.optim.clip_grad_norm",
        "torch.nn.utils.clip_grad_norm_",
        "optax.clip",
    ),
    _row(
        "clip-of-each-tensor",
        "clipping",
        prepared(mistrained.clip_each),
        "every tensor is clipped by its own norm; PyTorch takes one norm of all",
        "ports.optim.clip_grad_norm",
        "torch.nn.utils.clip_grad_norm_",
    ),
    _row(
        "accumulation-averages",
        "accumulation",
        mistrained.averaged,
        "accumulated gradients are averaged; PyTorch sums them",
        "ports.optim.accumulate, or divide PyTorch's loss",
        "torch.Tensor.backward",
        "optax.MultiSteps",
    ),
    _row(
        "idle-parameters-trained",
        ANY,
        mistrained.idle_trained,
        "a parameter without a gradient is moved, by decay; PyTorch leaves it as it is",
        "ports.optim.trained, or optax.multi_transform with set_to_zero",
        SGD,
        "optax.masked",
    ),
    _row(
        "vectors-not-trained",
        ANY,
        mistrained.matrices_only,
        "biases and norms' parameters stay as they are",
        "no mask on the updates",
        "optax.masked",
    ),
)


def explain(
    reference: torch.nn.Module, fed: Probe, training: Training, got: Tensors, responses: Responses
) -> TrainingTrap | None:
    """The mistake with which the reference's training ends where the port's does.

    Args:
        got: what the port's training added to every parameter, after the steps where that is beyond its bound; after
            the others it is what the reference's did.
    """
    got = responses.reference["training.parameter"] | got
    loop = run_pytorch.Loop(run_pytorch.updated(reference, fed), training)
    name = class_of(loop.optimizer)
    fitting = (trap for trap in TRAPS if name is None or not trap.classes or name in trap.classes)
    return next((trap for trap in fitting if _gives(trap, reference, fed, training, got, responses)), None)


def _gives(
    trap: TrainingTrap, reference: torch.nn.Module, fed: Probe, training: Training, got: Tensors, responses: Responses
) -> bool:
    try:
        updates = run_pytorch.trained(reference, fed, trap.plant(training))
    except (KeyError, AttributeError):  # the caller's own optimizer has other options
        return False
    return updates.keys() == got.keys() and all(
        bounds.distance(updates[name], got[name]) <= responses.bound("training.parameter", name) for name in got
    )

"""Steps of Flax networks under XLA, with as little as possible done by the host in each. Imports no PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.stages import Wrapped as JitWrapped
from jax.typing import DTypeLike
from jaxtyping import PyTree

import ports
from benchmarks.subjects.case import NetworkCase, SubjectCase
from benchmarks.subjects.packed import Packed
from benchmarks.subjects.quickest import Quickest
from benchmarks.subjects.settings import LEARNING_RATE, MOMENTUM, RESULT, WEIGHT_DECAY, Setting
from benchmarks.subjects.subject import SubjectOptions
from parity.numerics.layouts import leaves
from ports import families
from ports.optim import sgd

Tree = PyTree[jax.Array]
USUAL = SubjectOptions()
compiled = 0


def _count(event: str, *_: object, **__: object) -> None:
    global compiled
    compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def policy(setting: Setting) -> None:
    """The policy of `benchmarks.subjects.settings.PRECISIONS`, for this process."""
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if setting.precision == "tf32" else "highest")


def dtype(setting: Setting) -> str:
    return "bfloat16" if setting.precision == "bfloat16" else "float32"


def optimizer() -> optax.GradientTransformation:
    return sgd(LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def loss_in_float32(case: NetworkCase) -> Callable[[PyTree, jax.Array], jax.Array]:
    """The loss of a case's network; as under PyTorch's autocast, it is computed in float32."""
    loss_of = families.objective_of(case.spec).in_flax()
    return lambda outputs, labels: loss_of(jax.tree.map(lambda a: a.astype(jnp.float32), outputs), labels)


def laid_out(inputs: np.ndarray, dtype: DTypeLike) -> jax.Array:
    """An input in Flax's layout: images have their channels last; whole numbers keep their type."""
    array = inputs.transpose(0, 2, 3, 1) if inputs.ndim == 4 else inputs
    return jnp.array(array, dtype if array.dtype.kind == "f" else jnp.int32)


def in_reference(output: np.ndarray) -> np.ndarray:
    """Return an output in PyTorch's layout: feature maps have their channels first."""
    return output.transpose(0, 3, 1, 2) if output.ndim == 4 else output


def donated(case: SubjectCase, *arguments: int) -> tuple[int, ...]:
    """The arguments that a step may overwrite: on a GPU, where memory is short. CPUs would become slower."""
    return arguments if case.setting.device == "gpu" else ()


class JaxRun:
    """A function under `jax.jit` as a subject.

    Args:
        begin: starts a step on images (batch, height, width, channels) and labels, and returns logits or loss.
        read: the weights now, in the torch form.
        program: the program and the arguments of a step, for XLA's analysis.
        wide: whether it takes images in float32 in every precision, and narrows them itself.
    """

    asynchronous = True
    program: Callable[[jax.Array, jax.Array], tuple[Any, ...]] | None = None

    def __init__(
        self,
        case: NetworkCase,
        begin: Callable[[jax.Array, jax.Array], Any],
        read: Callable[[], Mapping[str, np.ndarray]],
        program: Callable[[jax.Array, jax.Array], tuple[Any, ...]] | None = None,
        wide: bool = False,
    ) -> None:
        narrow = jnp.bfloat16 if case.setting.precision == "bfloat16" and not wide else jnp.float32
        self.images = [laid_out(one, narrow) for one in case.images]
        self.labels = [jnp.array(one) for one in case.labels]
        self.begin, self.read, self.program, self.result = begin, read, program, RESULT[case.setting.mode]

    def step(self, which: int) -> Tree:
        return self.begin(self.images[which], self.labels[which])

    def wait(self, result: Tree) -> None:
        jax.block_until_ready(result)

    def numbers(self, result: Tree) -> dict[str, np.ndarray]:
        return {name: in_reference(np.asarray(a).astype(np.float64)) for name, a in leaves(result, self.result)}

    def weights(self) -> Mapping[str, np.ndarray]:
        return self.read()

    def programs(self) -> int:
        return compiled

    def memory(self) -> int:
        stats = jax.devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use") or 0

    def rest(self) -> None:
        """Do nothing: XLA's allocator gives no memory back."""

    def reserved(self) -> tuple[int, int]:
        """Return the bytes of the GPU's memory that this process took at most, and keeps: the same."""
        stats = jax.devices()[0].memory_stats() or {}
        most = max(stats.get("peak_pool_bytes") or stats.get("pool_bytes") or 0, stats.get("peak_bytes_in_use") or 0)
        return most, most

    def options(self) -> str | None:
        """The XLA options that were quickest, if several were tried."""
        jitted = self.program(self.images[0], self.labels[0])[0] if self.program else None
        return jitted.kept if isinstance(jitted, Quickest) else None

    def cost(self) -> dict[str, float]:
        """FLOP and bytes of the program, and its planned memory, as XLA counts them."""
        if self.program is None:
            return {}
        jitted, *arguments = self.program(self.images[0], self.labels[0])
        program = jitted.lower(*arguments).compile()
        found, planned = program.cost_analysis() or {}, program.memory_analysis()
        told = {"flops": found.get("flops"), "bytes": found.get("bytes accessed")}
        if planned is not None:
            told["temporary_bytes"] = planned.temp_size_in_bytes
        return {name: float(value) for name, value in told.items() if value is not None}


def compiled_for(
    case: SubjectCase, function: Callable[..., Any], tune: bool, donate: Sequence[int] = ()
) -> Quickest | JitWrapped:
    """A function under `jax.jit`; `tune`: with the XLA options that measure quickest here."""
    given = donated(case, *donate)
    if tune:
        return Quickest(function, case.setting.device, donate_argnums=given)
    return jax.jit(function, donate_argnums=given)


def build_nnx(case: NetworkCase, options: SubjectOptions = USUAL) -> JaxRun:
    """Build this package's NNX port.

    Model and optimizer are taken apart once, and a step gets a list of their arrays. At each call JAX only has to go
    through this list, which is short (`Packed`). In contrast, `nnx.jit` takes the objects apart and puts them together,
    and `nnx.jit_partial` goes through variables. After training the arrays go back into the model (`nnx.update`).
    """
    policy(case.setting)
    model = ports.create(case.spec, "nnx", seed=None, dtype=dtype(case.setting))
    ports.weights.write(model, case.weights)
    if options.fast:
        ports.fast.use(model)
    loss_of = loss_in_float32(case)

    def infer(model: Callable[[jax.Array], Tree], images: jax.Array) -> Tree:
        return model(images)

    def train(model: nnx.Module, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)

        def objective(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            model = nnx.merge(graphdef, params, rest, copy=True)
            return loss_of(model(images), labels), nnx.state(model, nnx.Not(nnx.Param))

        (loss, changed), grads = jax.value_and_grad(objective, has_aux=True)(params)
        nnx.update(model, changed)
        optimizer.update(model, grads)
        return loss

    training = case.setting.mode == "training"
    model.train() if training else model.eval()
    bound: tuple[Any, ...] = (model,)
    if training:
        bound += (nnx.Optimizer(model, optimizer(), wrt=nnx.Param),)
    if options.plain:
        step: Any = nnx.jit(train) if training else nnx.jit(infer)
        return JaxRun(
            case,
            lambda images, labels: step(*bound, images, labels) if training else step(*bound, images),
            lambda: ports.weights.read(model),
        )
    graphdef, state = nnx.split(bound)
    packed = Packed(state)
    pack, unpack = jax.jit(packed.pack), jax.jit(packed.unpack)

    def functional(arrays: list[jax.Array], images: jax.Array, labels: jax.Array) -> Tree:
        parts: Any = nnx.merge(graphdef, packed.unpack(arrays))
        if not training:
            return infer(parts[0], images)
        return train(parts[0], parts[1], images, labels), packed.pack(nnx.state(parts))

    jitted, held = compiled_for(case, functional, options.tune, [0] if training else []), [pack(state)]

    def begin(images: jax.Array, labels: jax.Array) -> Tree:
        if not training:
            return jitted(held[0], images, labels)
        loss, held[0] = jitted(held[0], images, labels)
        return loss

    def read() -> Mapping[str, np.ndarray]:
        nnx.update(bound, unpack(held[0]))
        return ports.weights.read(model)

    return JaxRun(case, begin, read, lambda images, labels: (jitted, held[0], images, labels))


def build_linen(case: NetworkCase, options: SubjectOptions = USUAL) -> JaxRun:
    """Build this package's Linen port: variables and the optimizer's state go in and come out."""
    policy(case.setting)
    module, variables = ports.create(case.spec, "linen", seed=None, dtype=dtype(case.setting))
    variables = ports.weights.write((module, variables), case.weights)
    if options.fast:
        module, variables = ports.fast.use((module, variables))

    rest, params = dict(variables), variables["params"]
    del rest["params"]

    def forward(params: Tree, rest: Tree, images: jax.Array, train: bool) -> tuple[Tree, Tree]:
        given = {"params": params, **rest}
        return (
            module.apply(given, images, train=True, mutable=list(rest))
            if train
            else (module.apply(given, images), rest)
        )

    def read(params: Tree, rest: Tree) -> Mapping[str, np.ndarray]:
        return ports.weights.read((module, {"params": params, **rest}))

    return stateless(case, forward, params, rest, read, options.tune)


def stateless(
    case: NetworkCase,
    forward: Callable[[Tree, Tree, jax.Array, bool], tuple[Tree, Tree]],
    params: Tree,
    rest: Tree,
    read: Callable[[Tree, Tree], Mapping[str, np.ndarray]],
    tune: bool = False,
) -> JaxRun:
    """A network that is a function, under `jax.jit`.

    Args:
        forward: takes parameters, other state, images and whether it is training; returns logits and the new state.
        read: the weights in the torch form.
        tune: see `compiled_for`.
    """
    if case.setting.mode == "inference":
        apply = compiled_for(case, lambda params, rest, images: forward(params, rest, images, False)[0], tune)
        return JaxRun(
            case,
            lambda images, _: apply(params, rest, images),
            lambda: read(params, rest),
            lambda images, _: (apply, params, rest, images),
        )
    tx, loss_of = optimizer(), loss_in_float32(case)

    def train(
        params: Tree, rest: Tree, state: Tree, images: jax.Array, labels: jax.Array
    ) -> tuple[Tree, Tree, Tree, jax.Array]:
        def objective(params: Tree) -> tuple[jax.Array, Tree]:
            logits, changed = forward(params, rest, images, True)
            return loss_of(logits, labels), changed

        (loss, changed), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), changed, state, loss

    step = compiled_for(case, train, tune, [0, 1, 2])
    held: list[Any] = [params, rest, tx.init(params)]

    def begin(images: jax.Array, labels: jax.Array) -> jax.Array:
        *held[:], loss = step(*held, images, labels)
        return loss

    return JaxRun(
        case,
        begin,
        lambda: read(held[0], held[1]),
        lambda images, labels: (step, *held, images, labels),
    )


def ceilings(where: str, precision: str) -> dict[str, float]:
    """FLOP/s of a large product of matrices and bytes/s of a large copy (read and written), the best of three."""
    n, length = (8192, 2**30) if where == "gpu" else (2048, 2**27)
    narrow = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a, b = (jax.random.normal(jax.random.key(i), (n, n)).astype(narrow) for i in range(2))
    source = jnp.ones(length // 4)
    product, copy = jax.jit(lambda a, b: a @ b), jax.jit(lambda x: x + 1)

    def best(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - begin)
        return min(times[1:])

    return {"flops": 2 * n**3 / best(lambda: product(a, b)), "bytes": 2 * length / best(lambda: copy(source))}

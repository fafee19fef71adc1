"""How a model is called: its own call, a method or a function of the caller's; with which arguments, in which mode.

No framework is imported: a `Call` is the same for PyTorch and for Flax.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter
from typing import Any, NoReturn

from ports.errors import UserError

# Argument names that set the mode of a call, and their values in train mode.
MODES = {
    **dict.fromkeys(("train", "training", "is_training", "is_train", "train_mode", "training_mode"), True),
    **dict.fromkeys(("update_batch_norm", "update_batch_stats", "update_stats", "enable_dropout"), True),
    **dict.fromkeys(("deterministic", "inference", "inference_mode", "eval_mode", "is_eval"), False),
    **dict.fromkeys(("use_running_average", "use_running_average_bn", "use_running_stats"), False),
}

FREE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

# From a model to the object that its caller calls: a library's model object instead of the module that it holds.
Holder = Callable[[Any], Any]


def itself(model: Any) -> Any:
    """Return the model itself, which is both called and holds the weights."""
    return model


@dataclass(frozen=True)
class Call:
    """How one side is called.

    Attributes:
        option: the prefix of the side's options, `torch` or `flax`.
        function: `(model, *inputs, **keywords)` to outputs, or the name of a method; by default the model's own call.
        keywords: the arguments by name; in a `Probe` those that only this side gets, in its own layout.
        modes: arguments that set the mode, by name: their values in eval and in train mode, besides those of `MODES`.
        holder: from the model to the object that is called.
    """

    option: str = "flax"
    function: Callable[..., Any] | str | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    modes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    holder: Holder = itself

    @property
    def entry(self) -> str:
        """The method in which the signature of the model's own call is found."""
        return "forward" if self.option == "torch" else "__call__"

    @property
    def side(self) -> str:
        """The name of this side in messages."""
        return "PyTorch" if self.option == "torch" else "Flax"

    def arguments(self, model: Any, inputs: Sequence[Any], train: bool) -> dict[str, Any]:
        """Return the arguments that are passed by name in a mode."""
        modes = {
            **_mode_keywords(self.parameters(model), len(inputs), train),
            **{name: both[train] for name, both in self.modes.items()},
        }
        return {**modes, **self.keywords}

    def __call__(self, model: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """Call the model with its inputs and with its `arguments`."""
        seen = self.holder(model)
        if self.function is None:
            return seen(*inputs, **keywords)
        if isinstance(self.function, str):
            return getattr(seen, self.function)(*inputs, **keywords)
        return self.function(seen, *inputs, **keywords)

    def parameters(self, model: Any) -> dict[str, Parameter]:
        """Return the parameters after the model; any, if the signature of the call is not known."""
        name = self.function or self.entry
        called: Callable[..., Any] = getattr(self.holder(model), name) if isinstance(name, str) else name
        try:
            found = dict(inspect.signature(called).parameters)
        except (TypeError, ValueError):
            return {kind.name: Parameter(kind.name, kind) for kind in FREE}
        if not isinstance(name, str) and found and (first := next(iter(found.values()))).kind in BY_PLACE:
            del found[first.name]
        return found

    def at_default(self, model: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> list[str]:
        """Return the names of the arguments that get no value from the caller and keep their default.

        Args:
            keywords: the arguments that both sides get by name.
        """
        known = self.parameters(model)
        places = [name for name, parameter in known.items() if parameter.kind in BY_PLACE]
        given = {*places[: len(inputs)], *keywords, *self.arguments(model, inputs, False)}
        return [n for n, one in known.items() if one.default is not Parameter.empty and n not in given]

    def require(self, model: Any, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """Raise where the model cannot be called so.

        Args:
            keywords: the arguments that both sides get by name.

        Raises:
            UserError: more inputs than it takes, a name that it does not know, an argument without a value.
        """
        known, what = self.parameters(model), f"the {self.side} model's {self._said(model)}"
        places = [name for name, parameter in known.items() if parameter.kind in BY_PLACE]
        named = {name for name, parameter in known.items() if parameter.kind not in FREE}
        kinds = {parameter.kind for parameter in known.values()}
        if len(inputs) > len(places) and Parameter.VAR_POSITIONAL not in kinds:
            raise UserError(
                f"{what} takes {_counted(places)}, got {len(inputs)}; pass by name what one side alone takes: "
                "torch_keywords={…}, flax_keywords={…}"
            )
        bound, given = {*places[: len(inputs)]}, {**keywords, **self.keywords}
        by_name = {name for name in bound if known[name].kind is not Parameter.POSITIONAL_ONLY}
        if twice := sorted(by_name & given.keys()):
            raise UserError(f"{what} gets {twice[0]!r} twice: as an input and by name; expected it once")
        unknown = [name for name in given if name not in named - bound]
        if unknown and Parameter.VAR_KEYWORD not in kinds:
            self._refuse(what, unknown[0], sorted(named - bound), shared=unknown[0] in keywords)
        valued = {*bound, *self.arguments(model, inputs, False), *given}
        missing = [n for n in known if n in named - valued and known[n].default is Parameter.empty]
        if missing:
            values = ", ".join(f"{name!r}: …" for name in missing)
            raise UserError(
                f"{what} needs {' and '.join(map(repr, missing))}, got no value; pass {self.option}_keywords="
                f"{{{values}}}, or modes={{{missing[0]!r}: (in eval, in train)}} where it says the mode"
            )

    def _refuse(self, what: str, name: str, takes: Sequence[str], shared: bool) -> NoReturn:
        """Raise at a name that the call does not know.

        Args:
            shared: whether both sides are passed it.
        """
        other = "torch" if self.option == "flax" else "flax"
        near = difflib.get_close_matches(name, takes, 1, 0)
        advice = f"what the other side alone takes goes into {other}_keywords="
        if not shared:
            advice = f"{near[0]} is nearest" if near else f"leave it out of {self.option}_keywords="
        raise UserError(f"{what} takes no {name!r}, expected one of {', '.join(takes) or 'nothing'}; {advice}")

    def require_method(self, model: Any) -> None:
        """Raise where the model has no such method.

        Raises:
            UserError: the model has no call of its own, or no method of this name.
        """
        seen, name = self.holder(model), self.function or self.entry
        if not isinstance(name, str):
            return
        own = [n for cls in type(seen).__mro__[:-1] for n in vars(cls) if not n.startswith("_")]
        methods = [n for n in dict.fromkeys(own) if callable(getattr(type(seen), n, None))]
        found = getattr(seen, name, None)
        if callable(found) and getattr(found, "__name__", "") != "_forward_unimplemented":
            return
        what = f"the {self.side} model {type(seen).__name__} has no method {name!r}"
        if self.function is None:
            first = next((n for n in methods if n in vars(type(seen))), "encode")
            raise UserError(f"{what}; say what to call: {self.option}_call={first!r}, or a function of the model")
        near = difflib.get_close_matches(name, methods, 1, 0)
        raise UserError(
            f"{self.option}_call: {what}; expected the name of a method{''.join(f'; {n} is nearest' for n in near)}"
        )

    def _said(self, model: Any) -> str:
        """Return what messages call what is called."""
        seen = self.holder(model)
        if self.function is None:
            return f"{type(seen).__name__}.{self.entry}"
        if isinstance(self.function, str):
            return f"{type(seen).__name__}.{self.function}"
        return f"{self.option}_call ({getattr(self.function, '__name__', 'a function')})"


def _counted(names: Sequence[str]) -> str:
    said = f" ({', '.join(names)})" if names else ""
    return f"{len(names)} input{'' if len(names) == 1 else 's'}{said}"


def _mode_keywords(known: Mapping[str, Parameter], inputs: int, train: bool) -> dict[str, bool]:
    """Return the arguments that set train or eval mode, except those that an input sets already."""
    bound = [name for name, parameter in known.items() if parameter.kind in BY_PLACE][:inputs]
    return {
        name: train is on
        for name, on in MODES.items()
        if name in known
        and name not in bound
        and known[name].kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        and (known[name].default in (Parameter.empty, None) or isinstance(known[name].default, bool))
    }


def switched(modes: Mapping[str, Sequence[Any]], sides: Iterable[tuple[Call, Any]]) -> list[Call]:
    """Return the calls with the caller's modes: each mode goes to the sides whose signature names it.

    If no side names it, it goes to those that take any name.

    Args:
        sides: calls, and the models that they call.

    Raises:
        UserError: a mode that no side takes.
    """
    known = [(call, call.parameters(model)) for call, model in sides]
    taken: list[dict[str, Sequence[Any]]] = [{} for _ in known]
    for name, both in modes.items():
        takers = [i for i, (_, names) in enumerate(known) if name in names]
        takers = takers or [
            i for i, (_, names) in enumerate(known) if any(p.kind is Parameter.VAR_KEYWORD for p in names.values())
        ]
        if not takers:
            said = "; ".join(f"{call.side}'s call takes {', '.join(names) or 'nothing'}" for call, names in known)
            raise UserError(f"modes: neither side takes {name!r}; {said}")
        for i in takers:
            taken[i][name] = both
    return [replace(call, modes=own) for (call, _), own in zip(known, taken, strict=True)]

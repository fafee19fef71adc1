"""Taps, which listen at the layers of a network while it runs, in the same way for every framework.

A tap is notified when a layer is entered and left, with the layer's PyTorch name (`name#2` at its second call), and may
replace the values. It only sees a layer's first array; if a layer takes or gives several, the others pass unseen.
"""

from __future__ import annotations

from typing import Any


class Tap:
    """Listens to nothing."""

    def enter(self, name: str, x: Any) -> Any:
        """Return what the layer gets instead of `x`."""
        return x

    def leave(self, name: str, y: Any) -> Any:
        """Return what the rest of the network gets instead of the layer's output `y`."""
        return y

    def passed(self, names: tuple[str, ...]) -> None:
        """Note that a layer with one of these names is called, even if its values are not seen."""


class Recorder(Tap):
    """Keeps outputs in order of completion and, if wanted, inputs in order of entry."""

    def __init__(self, inputs: bool = False) -> None:
        self.wants_inputs = inputs
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.called: dict[str, None] = {}

    def passed(self, names: tuple[str, ...]) -> None:
        self.called |= dict.fromkeys(names)

    def enter(self, name: str, x: Any) -> Any:
        # A stack of layers may be traced as a whole before its layers run in turn: this is the call that counts.
        if self.called.pop(name, self) is None:
            self.called[name] = None
        if self.wants_inputs:
            self.inputs[name] = x
        return x

    def leave(self, name: str, y: Any) -> Any:
        self.outputs[name] = y
        return y


class Calls:
    """Names of calls: a layer's own at its first, then `name#2`, `name#3`."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def next(self, name: str) -> str:
        self.counts[name] = count = self.counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def layer_of(call: str) -> str:
    """Return the layer of a call's name: `fc` of `fc` and `fc#2`; a module may be called `fc#1`."""
    name, mark, count = call.rpartition("#")
    return name if mark and count.isdecimal() and int(count) > 1 else call

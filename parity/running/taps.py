"""What listens at the layers of a network while it runs, the same in every framework.

A tap is told when a layer is entered and left, by the layer's PyTorch name (`name#2` at its second call), and may put
other values in. It sees a layer's first array: where a layer takes or gives several, the rest passes by.
"""

from __future__ import annotations

from typing import Any


class Tap:
    """Listens to nothing."""

    def enter(self, name: str, x: Any) -> Any:
        """What the layer gets for `x`."""
        return x

    def leave(self, name: str, y: Any) -> Any:
        """What the rest of the network gets for the layer's output `y`."""
        return y

    def passed(self, names: tuple[str, ...]) -> None:
        """A layer of one of these names is called, maybe where its values are not seen."""


class Recorder(Tap):
    """Keeps outputs in order of completion, and inputs in order of entry where they are wanted."""

    def __init__(self, inputs: bool = False) -> None:
        self.wants_inputs = inputs
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.called: dict[str, None] = {}

    def passed(self, names: tuple[str, ...]) -> None:
        self.called |= dict.fromkeys(names)

    def enter(self, name: str, x: Any) -> Any:
        # A stack of layers may be traced as one before its layers run in turn: now is when this one is called.
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

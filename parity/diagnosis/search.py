"""Find the known mistakes behind a difference: plant each, and see what still differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from operator import itemgetter

from parity.traps.trap import Trap

# Takes traps that are planted together, and returns the names of the values that still differ from the port's; None if
# the traps cannot be planted. For each place of a trap, one module of this package makes the experiment.
Experiment = Callable[[tuple[Trap, ...]], Set[str] | None]


def search(
    traps: Sequence[Trap], differing: Experiment, planted: tuple[Trap, ...] = (), *, together: bool = False
) -> tuple[Trap, ...]:
    """Return `planted` and the first traps that leave no difference with it; `planted` alone where there are none such.

    Args:
        traps: the candidates, in the order in which they are tried.
        together: also keep a trap planted that mends a part, and go on for the rest.
    """
    before: Set[str] = (differing(planted) or set()) if together else set()
    partly = []
    for trap in traps:
        left = differing((*planted, trap)) if trap not in planted else None
        if left is not None and not left:
            return (*planted, trap)
        if left is not None and left < before:
            partly.append((len(left), (*planted, trap)))
    # The trap that leaves the smallest difference is most likely one of the mistakes.
    for _, more in sorted(partly, key=itemgetter(0)):
        found = search(traps, differing, more, together=True)
        if found != more:
            return found
    return planted

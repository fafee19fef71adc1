"""The rearrangements that tensors of two models fit under, the likeliest first."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from parity.pairing.tensors import Tensor
from parity.running.inventory import OWN
from ports.weights.form.rearrangement import Gathering, Layout, Rearrangement, layouts

# Names of tensors whose numbers JAX code holds in PyTorch's order.
AS_IN_TORCH = ("weight", "embedding", "table", "codebook")
GROUP = 4  # tensors side by side that one variable may hold: query, key, value, gate
FORMS = 36  # rearrangements of one group of tensors


def fitting_forms(torch: Sequence[Tensor], flax: Sequence[Tensor]) -> tuple[Rearrangement, ...]:
    """Return the rearrangements of these tensors that fit, the likeliest first."""
    known = any(t.layer.kind != OWN for t in flax)  # a library's layer is read in PyTorch's layout
    if len(torch) == len(flax) == 1:
        found = _ranked(_upright(layouts(torch[0].shape, flax[0].shape)), torch[0], flax[0], known)
        return tuple(Rearrangement(layout) for layout in found)
    if len(torch) > 1 and len(flax) > 1:
        return _lists_in_parts(torch, flax)
    many, one = (torch, flax[0]) if len(torch) > 1 else (flax, torch[0])
    if not many[0].shape or len({axes_without(t.shape, uneven(many)) for t in many}) > 1:
        return ()
    forms: list[tuple[int, Rearrangement]] = []
    for order in _orders(many):
        for gathering, shape in (*_gatherings(many, order), *_flattened(many, one.shape, order)):
            fine = _by_layer(many, shape)
            if many is torch:
                ranked = [replace(x, old=shape) for x in _ranked(layouts(fine, one.shape), torch[0], one, known)]
                forms += [(i, Rearrangement(layout, gathering=gathering)) for i, layout in enumerate(ranked)]
            else:
                ranked = [replace(x, shape=shape) for x in _ranked(layouts(one.shape, fine), one, flax[0], known)]
                forms += [(i, Rearrangement(layout, spreading=gathering)) for i, layout in enumerate(ranked)]
        forms += [(FORMS, form) for form in _woven(many, one, order, turned=many is torch)]
    forms.sort(key=lambda form: form[0])  # each layout in all orders, before the next one
    return tuple(_different((form for _, form in forms), [t.shape for t in torch]))[:FORMS]


def _upright(found: Sequence[Layout]) -> list[Layout]:
    """Return the layouts without those that exchange the height and the width of a convolution's kernel."""
    kept = [layout for layout in found if not _lying(layout)]
    return kept or [*found]


def _lying(layout: Layout) -> bool:
    """Whether the last two axes of a kernel, of one length, change their order."""
    axes = [i for i, n in enumerate(layout.fine) if n != 1]
    if len(axes) != 4 or len(layout.old) < 4:
        return False
    height, width = axes[2:]
    square = [*layout.old][-2:] == [layout.fine[height], layout.fine[width]] and layout.fine[height] == layout.fine[
        width
    ]
    return square and layout.order.index(height) > layout.order.index(width)


def _lists_in_parts(torch: Sequence[Tensor], flax: Sequence[Tensor]) -> tuple[Rearrangement, ...]:
    """Return the forms in which the tensors of a list of layers stand in several variables, each with all layers."""
    if len({t.shape for t in torch}) > 1 or len({axes_without(t.shape, uneven(flax)) for t in flax}) > 1:
        return ()
    layers = Gathering((1,) * len(torch), True, tuple(range(len(torch))))
    source = (len(torch), *torch[0].shape)
    forms = [
        Rearrangement(layout, layers, spreading)
        for order in _orders(flax)
        for spreading, shape in _gatherings(flax, order)
        for layout in layouts(source, shape)
    ]
    forms.sort(key=lambda form: _unusual(form, torch, flax))
    return tuple(_different(forms, [t.shape for t in torch]))[:FORMS]


def _unusual(form: Rearrangement, torch: Sequence[Tensor], flax: Sequence[Tensor]) -> int:
    """Return 0 where the layers are the variables' first axis and kernels have their outputs last, as JAX code has."""
    layout, outputs = form.layout, len(torch) * torch[0].shape[0]
    kernel = torch[0].role == "weight" and len(torch[0].shape) > 1 and flax[0].last not in AS_IN_TORCH
    axes = [i for i in layout.order if layout.fine[i] != 1]  # in the port's order; the part comes first
    inputs = {i for i in axes if math.prod(layout.fine[:i]) >= outputs}
    uneven_parts = form.spreading is not None and bool(form.spreading.layouts)  # their outputs are in front here
    last = uneven_parts or not inputs or (axes[-1] in inputs) != kernel
    return (0 if axes[1:2] == [0] else 2) + (0 if last else 1)


def _parts(many: Sequence[Tensor]) -> int:
    """Return how many of the tensors are one layer's; the others are those of the same list of layers."""
    return len({re.sub(r"\d+", "*", t.full) for t in many})


def _by_layer(many: Sequence[Tensor], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the joined tensors with an axis for the layers, if each layer has several of them."""
    layers = len(many) // _parts(many)
    return shape if layers in (1, len(many)) else (layers, shape[0] // layers, *shape[1:])


def _orders(many: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Return the orders in which tensors may stand side by side; the numbers of layers in a list say theirs."""
    parts = _parts(many)
    if parts >= GROUP:
        return [tuple(range(len(many)))]
    layers = range(0, len(many), parts)
    return [tuple(at + i for at in layers for i in order) for order in itertools.permutations(range(parts))]


def uneven(many: Sequence[Tensor]) -> int:
    """Return the first axis in which tensors differ: those of own kernels (inputs, outputs) differ in the last one."""
    lengths = [len({t.shape[i] for t in many}) for i in range(min(len(t.shape) for t in many))]
    return next((i for i, n in enumerate(lengths) if n > 1), 0)


def axes_without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the shape without one of its axes."""
    return (*shape[:axis], *shape[axis + 1 :])


def _gatherings(many: Sequence[Tensor], order: tuple[int, ...]) -> Iterator[tuple[Gathering, tuple[int, ...]]]:
    first, axis = many[0].shape, uneven(many)
    sizes, rest = tuple(t.shape[axis] for t in many), axes_without(first, axis)
    if len({t.shape for t in many}) == 1:
        yield Gathering((1,) * len(many), True, order), (len(many), *first)
    elif axis == 0:
        yield Gathering(sizes, False, order), (sum(sizes), *rest)
    else:
        yield Gathering(sizes, False, order, tuple(_in_front(t.shape, axis) for t in many)), (sum(sizes), *rest)


def _in_front(shape: tuple[int, ...], axis: int) -> Layout:
    """Return the layout with one axis first."""
    others = (i for i in range(len(shape)) if i != axis)
    return Layout(shape, (axis, *others), (shape[axis], *axes_without(shape, axis)), shape)


def _flattened(
    many: Sequence[Tensor], one: tuple[int, ...], order: tuple[int, ...]
) -> Iterator[tuple[Gathering, tuple[int, ...]]]:
    """Yield the form in which kernels (inputs, heads, depth) of several depths follow one another, each whole."""
    if len({t.shape for t in many}) == 1 or len(many[0].shape) < 3 or len(one) != 2 or uneven(many) < 2:
        return
    inputs, *outputs = range(len(many[0].shape))
    shapes = [(math.prod(t.shape[1:]), t.shape[0]) for t in many]
    parts = tuple(Layout(t.shape, (*outputs, inputs), s, t.shape) for t, s in zip(many, shapes, strict=True))
    sizes = tuple(s[0] for s in shapes)
    yield Gathering(sizes, False, order, parts), (sum(sizes), shapes[0][1])


def _woven(many: Sequence[Tensor], one: Tensor, order: tuple[int, ...], turned: bool) -> Iterator[Rearrangement]:
    """Yield the form in which every head, or every group of heads, has its part of each tensor, as in GPT-NeoX.

    Args:
        turned: whether the many are PyTorch's.
    """
    heads, rest = math.gcd(*(t.heads for t in ((one,) if turned else many))), one.shape[1:]
    if heads < 2 or many[0].shape[1:] != rest or any(len(t.value) % heads for t in many):
        return

    def by_part(tensor: Tensor) -> Layout:
        """The layout with the part of a head first, and the heads behind it."""
        part, axes = len(tensor.value) // heads, range(2, 2 + len(rest))
        return Layout((heads, part, *rest), (1, 0, *axes), (part, heads, *rest), tensor.shape)

    parts = tuple(by_part(t) for t in many)
    gathering = Gathering(tuple(part.shape[0] for part in parts), False, order, parts)
    whole = by_part(one)
    yield Rearrangement(whole.back, gathering) if turned else Rearrangement(whole, None, gathering)


def _different(forms: Iterable[Rearrangement], shapes: Sequence[tuple[int, ...]]) -> Iterator[Rearrangement]:
    """Yield the forms that put the numbers in other places than those before."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    if ends[-1] > 2**16:
        yield from forms
        return
    marks = np.split(np.arange(ends[-1]), ends[:-1])
    arrays = tuple(mark.reshape(shape) for mark, shape in zip(marks, shapes, strict=True))
    seen: set[bytes] = set()
    for form in forms:
        key = b"".join(np.ascontiguousarray(a).tobytes() for a in form.to_flax(arrays))
        if key not in seen:
            seen.add(key)
            yield form


def _ranked(found: Sequence[Layout], torch: Tensor, flax: Tensor, known: bool) -> list[Layout]:
    """Return the layouts with the likeliest first: a kernel has its outputs last, everything else stays as it is.

    Args:
        known: whether a rule has brought the port's tensor into PyTorch's layout already, so that inputs are inputs.
    """
    if known and torch.layer.kind != OWN:
        kernel = len(torch.shape) > len(flax.shape) == 2  # of a convolution whose places are a dense layer's inputs
        kept = _outputs_kept if kernel else _inputs_kept
        return [layout for layout in found if layout.plain or (torch.shape != flax.shape and kept(layout))]
    return sorted(found, key=lambda layout: _rank(layout, torch, flax, known))


def _rank(layout: Layout, torch: Tensor, flax: Tensor, known: bool) -> int:
    kernel = not known and torch.role == "weight" and len(torch.shape) > 1 and flax.last not in AS_IN_TORCH
    if _kernelwise(layout, len(torch.shape)):
        return 0 if kernel else 1
    return 0 if layout.plain and not kernel else 2


def usual(torch: Sequence[Tensor], flax: Sequence[Tensor]) -> bool:
    """Return whether some form that fits is one that JAX code mostly has."""
    forms = fitting_forms(torch, flax)
    return any(_rank(form.layout, torch[0], flax[0], known=False) == 0 for form in forms)


def _inputs_kept(layout: Layout) -> bool:
    """Whether the last axis stays the last one."""
    width = layout.old[-1]
    marks = layout.apply(np.broadcast_to(np.arange(width), layout.old))
    return bool((marks.reshape(-1, width) == np.arange(width)).all())


def _outputs_kept(layout: Layout) -> bool:
    """Whether the first axis stays the first one."""
    count = layout.old[0]
    marks = layout.apply(np.broadcast_to(np.arange(count).reshape(-1, *(1,) * (len(layout.old) - 1)), layout.old))
    return bool((marks.reshape(count, -1) == np.arange(count)[:, None]).all())


def _kernelwise(layout: Layout, axes: int) -> bool:
    """Whether the last axes of the new array are PyTorch's outputs: its first axis, behind that of a group."""
    old = layout.old
    out = len(old) - axes
    if not old:
        return False
    marks = np.broadcast_to(np.arange(old[out]).reshape((-1,) + (1,) * (axes - 1)), old)
    moved = layout.apply(marks)
    if not moved.ndim:
        return False
    flat = moved.reshape(-1, moved.shape[-1])
    changes = [bool(np.ptp(moved, axis=i).any()) for i in range(moved.ndim)]
    return bool(np.ptp(flat, axis=1).any()) and (not any(changes[:-1]) or changes == sorted(changes))

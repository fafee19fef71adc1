"""sd-scripts spreads the timestep embedding's frequencies over one step less than SDXL does.

Source: kohya-ss/sd-scripts#1187.
"""

from __future__ import annotations

from . import Bug
from .timestep_sin_cos import Port, Torch, inputs

BUG = Bug(
    source="kohya-ss/sd-scripts#1187",
    what="`downscale_freq_shift` is one instead of zero: the exponents are divided by half - 1.",
    torch=Torch,
    port=lambda wrong: Port(shift=float(wrong)),
    inputs=inputs,
    layer="time_proj",
    named=r"shift|frequenc|half ?- ?1|divisor|exponent",
    kind="embedding",
    blind=True,
)

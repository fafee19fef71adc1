"""Modules of random structure in PyTorch, NNX and Linen: what faithful runs and planted mistakes are drawn from.

| module | holds |
|---|---|
| `choices.py` | what is drawn for one block: sizes, rates, how each side is written; the activations |
| `block.py` | the record of a kind of block: a builder for each framework |
| `norms.py`, `dense.py`, `attention.py`, `convolutions.py`, `recurrences.py` | the kinds, one row each |
| `networks.py` | inputs, blocks with norm and residual around them, and heads, in the three frameworks |
| `programs.py` | draws a program from a seed, and builds the pair |
| `mistakes.py` | changes one block of a port |

A new class of models is one row in a table of its kind. Both sides are written as most people write them, so names,
fused projections and places of float32 may differ between the two sides.
"""

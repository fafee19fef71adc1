"""Known mistakes of ports, as tables of `Trap` records. A new mistake is a new row.

| file or folder  | mistakes                                   | planted in                    |
|-----------------|--------------------------------------------|-------------------------------|
| `weights.py`    | in moving a tensor                         | PyTorch's tensor              |
| `layers/`       | in one layer, or its gradients             | the reference's layer         |
| `operations/`   | between layers                             | functions that its code calls |
| `losses.py`     | in the loss                                | functions that the loss calls |
| `training/`     | in optimizer, schedule, clipping           | PyTorch's training            |

`catalogue.py` lists them all; `tests/meta` plants each in a Flax port, and the check must find and name it. The tables
know
nothing of running: `parity.diagnosis` plants them.
"""

"""Known mistakes of ports, in tables: each with its name, what it does, how to plant it, how to mend it, its source.

| file                                             | mistakes                       | planted in                  |
|--------------------------------------------------|--------------------------------|-----------------------------|
| `weights.py`                                     | in moving a tensor             | PyTorch's tensor            |
| `layers.py`, `more_layers.py`                    | in one layer, or its gradients | the reference's layer       |
| `operations.py`, `activations.py`, `rearrangements.py` | between layers           | functions that its code calls |
| `losses.py`                                      | in the loss                    | functions that the loss calls |
| `training.py`                                    | in optimizer, schedule, clipping | PyTorch's training        |

`catalogue.py` lists them all; `tests/meta` plants each in a Flax port and asks the check what it is.
"""

"""States of optimizers in the torch form: `read` and `write` for live ones, and the table of known optimizers."""

from ports.weights.optimizer.form import OptimizerState
from ports.weights.optimizer.states import by_slot, read, write
from ports.weights.optimizer.table import STEP

__all__ = ["STEP", "OptimizerState", "by_slot", "read", "write"]

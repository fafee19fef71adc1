"""The results of a run, their layouts, and how far rounding may move them."""

"""What a run gives, in which layout, and how far rounding may move it."""

"""Known mistakes between layers: each is planted in functions that the reference's own code calls."""

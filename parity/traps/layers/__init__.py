"""Known mistakes in single layers: each is planted in the reference's layer."""

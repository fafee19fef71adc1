"""Checkpoints in the torch form: taken apart, recognised, converted, described."""

"""Checkpoints in the torch form: takes them apart, recognises, converts and describes them."""

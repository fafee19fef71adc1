"""Layers and initial distributions in which Flax differs from PyTorch, shared by the networks of all families."""

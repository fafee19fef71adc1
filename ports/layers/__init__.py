"""Layers and initial distributions that Flax has otherwise than PyTorch: shared by the networks of every family."""

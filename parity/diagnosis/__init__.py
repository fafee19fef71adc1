"""Finds the layer that is wrong by itself, and the known mistake behind it."""

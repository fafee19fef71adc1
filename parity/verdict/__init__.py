"""Compares every tensor of a port with its bound."""

"""Runs the reference and the ports, and records what every layer takes and gives."""

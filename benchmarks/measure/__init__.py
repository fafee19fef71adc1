"""Measuring: references, the gate, the clock, and the processes of a run."""

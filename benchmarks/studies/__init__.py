"""Measurements besides those of `python -m benchmarks`: conversion, the cost of a check, the stages of `make gpu`."""

"""The benchmarks and their stored results. Runs from a checkout."""

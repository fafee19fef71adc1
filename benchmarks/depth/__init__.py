"""A study: do residual connections let networks be deeper? `python -m benchmarks depth`."""

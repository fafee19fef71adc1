"""The machine that measures: what it is, what a process holds, the GPU's own clock. Knows nothing of networks."""

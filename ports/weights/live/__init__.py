"""Read and write live models, one module a framework."""

"""Read and write live models, with one module per framework."""

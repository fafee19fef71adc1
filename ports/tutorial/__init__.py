"""The networks of two tutorials on residual networks: the shortest way to see the three frameworks side by side."""

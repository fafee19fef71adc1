"""Checks Flax ports that others published on GitHub against the PyTorch classes that they were made from.

`python -m tests.twins.published FOLDER`; the rows import the projects from clones in that folder.
"""

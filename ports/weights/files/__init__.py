"""Files as trees of arrays: formats, and how to open, guard and write a file."""

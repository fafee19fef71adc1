"""Files as trees of arrays: formats, and how a file is opened, guarded and written whole."""

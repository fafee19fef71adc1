"""The commands of `parity`."""

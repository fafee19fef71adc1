"""Finds which of the port's layers is which of the reference's."""

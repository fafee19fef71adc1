"""Holds every tensor of a port against its bound."""

"""The networks and dialects that are known, and how a file is recognised as one of them."""

"""The torch form and its matching. This room imports no other room."""

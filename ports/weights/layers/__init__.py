"""The known layer types. This room imports no other room."""

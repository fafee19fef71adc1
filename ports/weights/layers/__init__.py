"""What is known of layer types. This room imports no other room."""

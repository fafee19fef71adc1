"""Known mistakes of training: each is planted in PyTorch's side of the training."""

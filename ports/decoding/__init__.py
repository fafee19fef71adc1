"""The cache of a decoder: keys and values of the tokens so far, in `pytorch` and in `flax` (NNX and Linen)."""

"""What a decoder remembers of the tokens so far: their keys and values, in `pytorch` and in `flax` (NNX and Linen)."""

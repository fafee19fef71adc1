"""How a network of any family is made in each framework: its initial weights, its type, and a form without memory."""

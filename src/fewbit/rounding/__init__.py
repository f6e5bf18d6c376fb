"""How a weight chooses its code."""

"""A template: an agent of one's own for saqrl."""

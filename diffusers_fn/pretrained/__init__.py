"""Published torch weights as linen parameters, and back."""

"""A smaller PyTorch model, equally good, for less total energy, with proof."""

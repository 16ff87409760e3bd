"""Weights in and out: Orbax checkpoints, and their conversion from and to the released torch layout."""

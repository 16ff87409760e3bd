"""Edits of G-buffers: change materials inside masks and insert objects, as arrays and as jobs of `drender`."""

"""Path-traced clips of random scenes with exact G-buffers, for training and evaluation (needs the extra `data`)."""

"""Path-traced clips with exact G-buffers, to train and to evaluate on; the extra `data` installs what it needs."""

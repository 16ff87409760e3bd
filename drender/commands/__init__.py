"""The installed command `drender`, and what the scripts `sample.py`, `train.py` and `convert_weights.py` run."""

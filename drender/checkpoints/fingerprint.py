"""TODO."""

import hashlib

import numpy as np

from drender.models.params import flatten


def fingerprint(vae: dict) -> str:
    """Tells apart the VAEs whose latents differ: a hash of the parameters that encode, as float32."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten(vae).items()):
        if not name.startswith("decoder."):
            digest.update(name.encode())
            digest.update(np.asarray(value, np.float32).tobytes())
    return digest.hexdigest()[:16]

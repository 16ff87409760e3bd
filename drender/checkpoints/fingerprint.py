"""Identify the VAE that cached latents were encoded with."""

import hashlib

import numpy as np

from drender.models.params import flatten


def fingerprint(vae: dict) -> str:
    """Return a hash of the VAE's parameters that encode, cast to float32; the decoder does not change latents."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten(vae).items()):
        if not name.startswith("decoder."):
            digest.update(name.encode())
            digest.update(np.asarray(value, np.float32).tobytes())
    return digest.hexdigest()[:16]

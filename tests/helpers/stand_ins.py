"""Instant renderers for tests of runs, of their files and of resuming."""

import numpy as np
from helpers import small

from drender.config import DOMAINS
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.renderers.windows import WindowedLatents


class StandIn:
    """A renderer whose latents are pixels, with one window per clip."""

    def __init__(self):
        pass

    def encode(self, images, sampling, rng=None):
        return images

    def initial_noise(self, noise, sampling, grid):
        return np.zeros(grid, np.float32)

    def decode(self, latents, sampling, match=False):
        (piece,) = latents.latents
        return (piece[:, i : i + 3] for i in range(0, piece.shape[1], 3))


class InverseStandIn(StandIn, InverseRenderer):
    """Return a different power of the RGB for each pass."""

    config = small.inverse_config()

    def estimate(self, latents, passes, sampling, noise, progress, known=(), stop=None):
        for name in passes:
            power = np.float32(1 + 0.1 * DOMAINS[name] + sampling.seed)
            yield name, WindowedLatents([slice(0, latents.shape[1])], [latents**power])


class ForwardStandIn(StandIn, ForwardRenderer):
    """Return the mean of the buffers times the mean of the light from one side."""

    config = small.forward_config()
    environment_size = (64, 64)

    def encode_environment(self, environment):
        return np.asarray(environment["env_ldr"])[None, :, :, -16:].mean(axis=(2, 3), keepdims=True)

    def render(self, latents, light, sampling, noise, progress, stop=None):
        frames = sum(latents.values()) / np.float32(len(latents)) * light
        return WindowedLatents([slice(0, frames.shape[1])], [frames])

"""Renderers that render at once, for what is around them: runs, their files, and how they go on after a stop."""

import numpy as np
from helpers import small

from drender.config import DOMAINS
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.renderers.windows import WindowedLatents


class StandIn:
    """Latents are pixels, and a clip has one window."""

    def __init__(self):
        pass

    def encode(self, images, sampling, rng):
        return images

    def initial_noise(self, noise, seed, grid):
        return np.zeros(grid, np.float32)

    def decode(self, latents, sampling, match=False):
        (piece,) = latents.pieces
        return (piece[:, i : i + 3] for i in range(0, piece.shape[1], 3))


class InverseStandIn(StandIn, InverseRenderer):
    """Every pass is another power of the picture."""

    config = small.inverse_config()

    def estimate(self, latents, passes, sampling, noise, progress, known=()):
        for name in passes:
            power = np.float32(1 + 0.1 * DOMAINS[name] + sampling.seed)
            yield name, WindowedLatents([slice(0, latents.shape[1])], [latents**power])


class ForwardStandIn(StandIn, ForwardRenderer):
    """The mean of the buffers times that of the light from one side."""

    config = small.forward_config()
    environment_size = (64, 64)

    def encode_environment(self, environment):
        return np.asarray(environment["env_ldr"])[None, :, :, -16:].mean(axis=(2, 3), keepdims=True)

    def render(self, latents, light, sampling, noise, progress):
        frames = sum(latents.values()) / np.float32(len(latents)) * light
        return WindowedLatents([slice(0, frames.shape[1])], [frames])

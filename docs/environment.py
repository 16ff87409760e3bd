"""Draw environment.png: the conditioning images of a synthetic sky, as panorama and as mirror ball.

python docs/environment.py
"""

from pathlib import Path

import numpy as np

from drender import environment_maps
from drender.media.images import write_png

HEIGHT, WIDTH, SIDE = 256, 512, 160
SUN = np.array([0.55, 0.5, -0.67])


def sky() -> np.ndarray:
    """Return a lat-long map `h w 3` of linear radiance: blue above, brown below, and a sun of radiance 2000."""
    polar = (np.arange(HEIGHT) + 0.5)[:, None] / HEIGHT * np.pi
    azimuth = (np.arange(WIDTH) + 0.5)[None] / WIDTH * 2 * np.pi - np.pi
    x, y, z = np.sin(polar) * np.sin(azimuth), np.cos(polar) + 0 * azimuth, -np.sin(polar) * np.cos(azimuth)
    haze = (1 - np.clip(y, 0, 1))[..., None] ** 3
    above = np.array([0.25, 0.45, 0.95]) + haze * np.array([0.55, 0.4, 0.0])
    below = np.array([0.32, 0.27, 0.2]) * (0.4 + 0.6 * np.clip(-y, 0, 1))[..., None]
    toward_sun = (np.stack([x, y, z], axis=-1) @ (SUN / np.linalg.norm(SUN)))[..., None]
    glow = 6 * np.exp((toward_sun - 1) * 60) + 1.2 * np.exp((toward_sun - 1) * 8)
    disc = 2000 * np.clip((toward_sun - 0.9985) / 0.0015, 0, 1)
    return (np.where(y[..., None] > 0, above, below) + (disc + glow) * np.array([1, 0.85, 0.6])).astype(np.float32)


if __name__ == "__main__":
    frame = environment_maps(sky(), num_frames=1, size=(SIDE, SIDE))
    ball = environment_maps(sky(), num_frames=1, size=(SIDE, SIDE), projection="ball")
    row = [frame["env_ldr"], frame["env_log"], frame["env_nrm"], ball["env_ldr"], ball["env_log"]]
    write_png(
        Path(__file__).with_name("environment.png"), np.concatenate([np.asarray(image[0]) for image in row], axis=1)
    )

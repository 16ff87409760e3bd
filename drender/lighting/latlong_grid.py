"""The pixels of a lat-long map as directions in world axes, under the default rotation of 180°."""

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import sparse

from drender.lighting.latlong import sphere_weights


def pixel_directions(height: int, width: int) -> tuple[Float32[np.ndarray, "j 3"], Float32[np.ndarray, " j"]]:
    """Return the directions in world axes of a map's pixels, under the default rotation of 180°, and solid angles."""
    azimuth = 2 * np.pi * (np.arange(width) + 0.5) / width
    azimuth, polar = np.meshgrid(azimuth, np.pi * (np.arange(height) + 0.5) / height)
    directions = np.stack([np.sin(polar) * np.sin(azimuth), np.cos(polar), -np.sin(polar) * np.cos(azimuth)], axis=-1)
    solid_angles = np.repeat(4 * np.pi * sphere_weights(height, width), width)
    return directions.reshape(-1, 3).astype(np.float32), solid_angles.astype(np.float32)


def pixel_index(directions: Float[np.ndarray, "p 3"], grid: tuple[int, int]) -> Int[np.ndarray, " p"]:
    """Return the index of the map's pixel in which each direction of world axes lies."""
    (height, width), (x, y, z) = grid, directions.T
    row = np.minimum(np.arccos(np.clip(y, -1, 1)) / np.pi * height, height - 1).astype(int)
    return row * width + np.floor(np.arctan2(x, -z) / (2 * np.pi) * width).astype(int) % width


def smoothness_matrix(grid: tuple[int, int], luminance: Float32[np.ndarray, " j"]) -> Float32[np.ndarray, "j j"]:
    """Return the quadratic form of the gradient over the sphere, relative to the radiance, which spares suns."""
    height, width = grid
    index = np.arange(height * width).reshape(grid)
    first = np.concatenate([index.ravel(), index[:-1].ravel()])
    second = np.concatenate([np.roll(index, -1, axis=1).ravel(), index[1:].ravel()])
    centers, edges = np.sin(np.pi * (np.arange(height) + 0.5) / height), np.sin(np.pi * np.arange(1, height) / height)
    weight = np.concatenate([np.repeat(1 / np.maximum(centers, 0.1), width), np.repeat(edges, width)])
    weight = np.sqrt(weight / (luminance[first] + luminance[second] + 0.1) / len(luminance))
    row = np.arange(len(first))
    difference = sparse.csr_array((np.r_[weight, -weight], (np.r_[row, row], np.r_[first, second])))
    return (difference.T @ difference).toarray().astype(np.float32)


def resize_latlong(image: Float32[np.ndarray, "h w c"], size: tuple[int, int]) -> Float32[np.ndarray, "H W c"]:
    """Resample a lat-long map, bilinear, around the circle."""
    (height, width), (new_height, new_width) = image.shape[:2], size
    if (height, width) == (new_height, new_width):
        return image
    row = np.clip((np.arange(new_height, dtype=np.float32) + 0.5) * height / new_height - 0.5, 0, height - 1)
    column = (np.arange(new_width, dtype=np.float32) + 0.5) * width / new_width - 0.5
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - top).astype(np.float32)[:, None, None], (column - left).astype(np.float32)[:, None]
    image = image[:, left % width] * (1 - right) + image[:, (left + 1) % width] * right
    return image[top] * (1 - down) + image[np.minimum(top + 1, height - 1)] * down

"""Montages: images side by side in videos, and contact sheets."""

import numpy as np

from drender.media.resize import fit_cover

SHEET_SIDE = 128  # approximate shorter side of an image on a contact sheet, in pixels
TILE_SIDE = 1024  # maximum side of an image in a video, in pixels


def side_by_side(images: list[np.ndarray], columns: int = 3) -> np.ndarray:
    """Arrange images `h w 3` of one size in rows of at most `columns`; empty cells are black."""
    columns = min(columns, len(images))
    images = images + [np.zeros_like(images[0])] * (-len(images) % columns)
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    return np.concatenate(rows)


def tile(image: np.ndarray) -> np.ndarray:
    """Shrink an image to at most TILE_SIDE, for a side-by-side video."""
    return _scaled(image, min(1.0, TILE_SIDE / max(image.shape[:2])))


def contact_sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Arrange rows of images `h w 3` of one size, each scaled to SHEET_SIDE pixels along its shorter side."""
    images = [_scaled(image, SHEET_SIDE / min(image.shape[:2])) for row in rows for image in row]
    return side_by_side(images, columns=len(rows[0]))


def _scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge by repeating pixels, so that those of a small model stay visible, or shrink with antialiasing."""
    if factor >= 1:
        return image.repeat(round(factor), axis=0).repeat(round(factor), axis=1)
    return fit_cover(image, tuple(round(side * factor) for side in image.shape[:2]))

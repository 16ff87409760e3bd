"""TODO."""

import numpy as np

from drender.media.resize import fit_cover

SHEET_SIDE = 128  # of the images on a contact sheet, about


TILE_SIDE = 1024  # of the images in a video, at most


def side_by_side(images: list[np.ndarray], columns: int = 3) -> np.ndarray:
    """Images `h w 3` of one size in rows of at most `columns`; empty places are black."""
    columns = min(columns, len(images))
    images = images + [np.zeros_like(images[0])] * (-len(images) % columns)
    rows = [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    return np.concatenate(rows)


def tile(image: np.ndarray) -> np.ndarray:
    """The image as a video shows it beside others: no larger than a screen can take."""
    return _scaled(image, min(1.0, TILE_SIDE / max(image.shape[:2])))


def contact_sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Rows of as many images `h w 3` of one size, each brought to SHEET_SIDE pixels along its shorter side."""
    scaled = lambda image: _scaled(image, SHEET_SIDE / min(image.shape[:2]))
    return side_by_side([scaled(image) for row in rows for image in row], columns=len(rows[0]))


def _scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """Larger in whole pixels, for a small model's are to be seen; or else smaller."""
    if factor >= 1:
        return image.repeat(round(factor), axis=0).repeat(round(factor), axis=1)
    return fit_cover(image, tuple(round(side * factor) for side in image.shape[:2]), multiple=1)


def inset(image: np.ndarray, environment: np.ndarray) -> np.ndarray:
    """The image with the environment that lights it in its lower left corner."""
    image = image.copy()
    h, w = environment.shape[:2]
    image[-h:, :w] = environment
    return image

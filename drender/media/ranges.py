"""Find out, from the values of a clip's files, what their metadata do not tell: metric depth and packed normals."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from drender.media.color import Pixels
from drender.media.encodings import ATTRIBUTE_PREFIX, FAR, SLACK, InputEncoding, distances, is_color, read_labeled
from drender.media.loaded import LoadedImage

MAX_AWAY = 0.25  # share of normals that point away from the camera; in camera space only grazing ones do
SUSPICIOUS_DEPTH = 0.25  # relative depth that stays below is probably distances in integers


def resolve_encoding(paths: Sequence[Path], label: str, assumed: InputEncoding) -> InputEncoding:
    """Return the encoding of a clip's files of one label; a warning names what was found out from their values.

    Only the first frame is read, unless depth is metric: its range is that of the clip.
    """
    if label not in ("depth", "normal") and (not is_color(label) or label == "rgb"):
        return assumed
    first = assumed.load(paths[0], label)
    if label == "normal":
        resolved = replace(assumed, packed_normals=_are_packed(paths[0], first))
        if assumed.normals != "world" and f"{ATTRIBUTE_PREFIX}normals" not in first.attributes:
            _warn_of_axes(paths[0], read_labeled(paths[0], label, resolved, finite=False))
        return resolved
    if label == "depth":
        kind = _kind_of_depth(paths[0], first, assumed)
        resolved = replace(assumed, depth=kind)
        if kind == "relative":
            return resolved
        near, far = _distance_range(paths, resolved)
        if assumed.depth is None:
            found = f"read as distances, {near:.3g} to {far:.3g} over the clip (above {FAR:.0e} is background)"
            problem = f"depth is out of 0 to 1, so it is {found}; give --input-depth if it is not metric"
            warnings.warn(f"{paths[0].parent}: {problem}", stacklevel=3)
        return replace(resolved, depth_range=(near, far))
    if first.is_float and (largest := first.image.max()) > 1 + SLACK:
        problem = f"{label} reaches {largest:.3g} and is clipped; expected linear values in 0 to 1"
        warnings.warn(f"{paths[0]}: {problem}", stacklevel=2)
    return assumed


def _are_packed(path: Path, first: LoadedImage) -> bool:
    """Return whether float normals are n·½ + ½: none is negative, and unpacked they are closer to unit length."""
    if not first.is_float or f"{ATTRIBUTE_PREFIX}normals" in first.attributes or not np.isfinite(first.image).all():
        return False
    normals = first.image[(first.image != 0).any(axis=-1)]
    if not len(normals) or normals.min() < 0:
        return False
    as_vectors, unpacked = (np.median(np.abs(np.linalg.norm(n, axis=-1) - 1)) for n in (normals, normals * 2 - 1))
    if as_vectors < 0.02 or unpacked >= as_vectors:
        return False
    warnings.warn(f"{path}: normals are read as n/2 + 1/2, since none is negative nor of unit length", stacklevel=3)
    return True


def _warn_of_axes(path: Path, stored: Pixels) -> None:
    """Warn of normals that visible surfaces cannot have in camera space."""
    vectors = stored * 2 - 1
    is_unit = np.abs(np.linalg.norm(vectors, axis=-1) - 1) < 0.05
    away = float((is_unit & (vectors[..., 2] < -0.1)).mean())
    if away > MAX_AWAY:
        problem = f"{away:.0%} of its normals point away from the camera, expected z toward it"
        remedy = "give --input-normals world and --poses if they are in world space, or turn their z"
        warnings.warn(f"{path}: {problem}; {remedy}", stacklevel=3)


def _kind_of_depth(path: Path, first: LoadedImage, assumed: InputEncoding) -> str:
    """Return whether depth is "relative", "metric" or "inverse"."""
    if first.attributes.get("ImageDescription", "").startswith("depth: relative"):  # a file of drender
        return "relative"
    if assumed.depth is not None:
        return assumed.depth
    depth = first.image[..., 0]
    if not first.is_float:
        if depth.min() < depth.max() < SUSPICIOUS_DEPTH:
            problem = f"depth is only {depth.min():.3g} to {depth.max():.3g}, expected 0 near to 1 far"
            remedy = "give --input-depth metric, or encoding.json, if these are distances, relative if not"
            warnings.warn(f"{path}: {problem}; {remedy}", stacklevel=3)
        return "relative"
    in_range = np.isfinite(depth).all() and depth.min() >= -SLACK and depth.max() <= 1 + SLACK
    return "relative" if in_range else "metric"


def _distance_range(paths: Sequence[Path], encoding: InputEncoding) -> tuple[float, float]:
    """Return the nearest and farthest distance of a clip; 0 and 1 if all is background."""
    near, far = np.inf, -np.inf
    for path in paths:
        found = distances(encoding.load(path, "depth"), encoding.depth)
        near = min(near, float(found.min()))
        far = max(far, float(found.max(where=np.isfinite(found), initial=-np.inf)))
    return (near, far) if near <= far else (0.0, 1.0)

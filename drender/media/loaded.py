"""A loaded image: its pixels with what its file states about their colors."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ImageCms

from drender.errors import InputError, first_line
from drender.media.color import Pixels, primaries_to_rec709, profile_to_srgb, space_to_rec709, space_to_srgb


class LoadedImage(NamedTuple):
    """An image with its metadata."""

    image: Pixels  # upright, composited on black
    is_float: bool  # linear light unless the attributes contradict
    attributes: dict[str, str]  # strings of the header
    profile: bytes | None = None  # ICC profile of RGB or gray integers, unless it names sRGB
    space: str | None = None  # OpenImageIO's name of the color space, unless sRGB
    chromaticities: tuple[float, ...] | None = None  # of red, green, blue and white in an EXR
    ignored: str | None = None  # what else the file states of colors, which `as_srgb` warns of

    def as_srgb(self, path: str | Path) -> Pixels:
        """Return an image of integers converted from its ICC profile or color space to sRGB.

        A profile or space that cannot be converted gives a warning that names `path`.
        """
        if self.profile is not None:
            return self._converted(path, "ICC profile", profile_to_srgb, self.profile)
        if self.space is not None:
            return self._converted(path, "color space", space_to_srgb, self.space)
        if self.ignored is not None:
            warn_once(path, f"its {self.ignored} is ignored; convert it to sRGB")
        return self.image

    def as_linear(self, path: str | Path) -> Pixels:
        """Return an image of linear light converted to Rec. 709 primaries; warn as `as_srgb` does."""
        if self.chromaticities is not None:
            convert = lambda image, chromaticities: image @ primaries_to_rec709(chromaticities)
            return self._converted(path, "color space", convert, self.chromaticities)
        if self.is_float and self.space is not None:
            return self._converted(path, "color space", space_to_rec709, self.space)
        return self.image

    def _converted(self, path: str | Path, kind: str, convert: Callable[[Pixels, Any], Pixels], source: Any) -> Pixels:
        try:
            return convert(self.image, source)
        except (InputError, ImageCms.PyCMSError, OSError) as error:
            warn_once(path, f"its {kind} is ignored ({first_line(error)}); convert it to sRGB, or to linear Rec. 709")
            return self.image


_warned = set()


def warn_once(path: str | Path, problem: str) -> None:
    """Warn that a file has a problem, unless another file of its folder, such as another frame, had the same."""
    if (Path(path).parent, problem) not in _warned:
        _warned.add((Path(path).parent, problem))
        warnings.warn(f"{path}: {problem}", stacklevel=3)

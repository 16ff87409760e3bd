"""Evaluate an inverse renderer on photographs of scikit-image, which no model here was trained on.

    python benchmarks/photographs.py [FOOTAGE ...] [--inverse C] [--size 128 128] [--sheet photographs.png]

The motorcycle of the Middlebury stereo set has a true disparity, hence metric depth and normals. Scores are over its
pixels with a disparity, beside baselines that look at nothing: height in the picture as depth, and normals that face
the camera. The sheet shows every photograph, and the middle frame of any other footage, with its estimated G-buffers.
Needs scikit-image.
"""

from collections.abc import Iterator

import numpy as np
import skimage.data
from jaxtyping import Bool, Float
from scipy.stats import spearmanr

from drender import InverseRenderer, cli
from drender.config import DEFAULT_PASSES
from drender.media.encodings import encode_normal
from drender.media.images import write_png
from drender.media.montage import side_by_side
from drender.media.resize import resize
from drender.media.video import find_clips
from drender.metrics.image import angular_error

PHOTOGRAPHS = ("stereo_motorcycle", "coffee", "chelsea", "astronaut", "rocket")
# The motorcycle's camera in the pixels of scikit-image's copy: focal length and principal points' distance; meters.
FOCAL, OFFSET, BASELINE = 994.978, 31.086, 0.193001


def main() -> None:
    args = parser().parse_args()
    inverse = InverseRenderer.load(args.inverse)
    size = tuple(args.size or inverse.config.size)
    sheet = []
    for rgb, disparity in photographs(args.footage):
        image = resize(central_square(rgb), size)
        buffers = {label: x[0, 0] for label, x in inverse(image[None, None], progress=False).items()}
        sheet += [image, *(buffers[label] for label in DEFAULT_PASSES)]
        if disparity is not None:
            report(buffers, disparity, size)
    if args.sheet:
        write_png(args.sheet, side_by_side(sheet, columns=1 + len(DEFAULT_PASSES)))


def photographs(footage: list[str]) -> Iterator[tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"] | None]]:
    """Yield scikit-image's photographs in [0, 1], each with its disparity or None, then the footage's middle frames."""
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)()
        rgb, *others = photograph if isinstance(photograph, tuple) else (photograph,)
        yield rgb[..., :3] / np.float32(255), others[-1] if others else None
    for path in footage:
        for clip in find_clips(path):
            middle = clip.num_frames // 2
            yield next(clip.frames(middle, middle + 1)), None


def central_square(image: Float[np.ndarray, "h w *c"]) -> Float[np.ndarray, "s s *c"]:
    """Crop an image to the largest square around its center."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def report(buffers: dict[str, np.ndarray], disparity: Float[np.ndarray, "h w"], size: tuple[int, int]) -> None:
    """Print the scores of the motorcycle's depth and normals, and those of the baselines."""
    depth, normal, valid = truth(disparity, size)
    height = np.broadcast_to(np.linspace(1, 0, size[0])[:, None], size)
    facing = np.broadcast_to(encode_normal(np.array([0, 0, 1], np.float32)), normal.shape)
    print("| motorcycle | depth, rank correlation | normals, mean angle |\n|---|---|---|")
    for row, estimate, normals in (
        ("inverse", buffers["depth"].mean(-1), buffers["normal"]),
        ("baseline", height, facing),
    ):
        rank = spearmanr(estimate[valid], depth[valid]).statistic
        print(f"| {row} | {rank:.3f} | {angular_error(normals, normal)[valid].mean():.1f}° |")


def truth(
    disparity: Float[np.ndarray, "h w"], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W 3"], Bool[np.ndarray, "H W"]]:
    """Return the depth in meters, the encoded normals in camera space (OpenGL axes), and which pixels are valid."""
    full = np.where(np.isfinite(disparity) & (disparity > 0), BASELINE * FOCAL / (disparity + OFFSET), np.nan)
    square = central_square(full)
    side = len(square)
    # The nearest sample of each pixel: means would invent depths between an object and what is behind it.
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n in size)
    depth = square[np.ix_(rows, columns)]
    x, y = np.meshgrid((columns + 0.5 - side / 2) / FOCAL, -(rows + 0.5 - side / 2) / FOCAL)
    points = np.stack([x * depth, y * depth, -depth], axis=-1)
    right, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
    normal = np.cross(down, right)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    valid = np.isfinite(depth) & np.isfinite(length[..., 0]) & (length[..., 0] > 0)
    normal = np.where(valid[..., None], normal / np.where(length > 0, length, 1), [0, 0, 1])
    return depth, encode_normal(normal.astype(np.float32)), valid


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("footage", nargs="*", metavar="FOOTAGE", help="pictures and videos to show on the sheet too")
    parser.add_argument(
        "--inverse", metavar="C", help="checkpoint of an inverse renderer; the built-in model if absent"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="size in pixels; the model's if absent")
    parser.add_argument("--sheet", metavar="FILE", help="picture of the photographs and their G-buffers")
    return parser


if __name__ == "__main__":
    cli.run(main)

"""Evaluate the estimated light of path-traced clips, whose light is known; print tables for docs/quality.md.

    python -m drender.synthetic data/lights --clips 25 --frames 3 --split test --seed 18 [--meshes FOLDER …]
    python benchmarks/light.py data/lights [--estimated] [--no-fov] [--relight] [--pictures FOLDER]

Main direction: the first moment of the luminance. Irradiance: of 256 normals, correlated over the sphere. Scale: the
estimate's mean irradiance over the true one. The time is that of all threads on a processor. "Unrelated" compares the
true light of the previous clip. A light that turns is estimated in its own axes.
"""

import json
import time
from pathlib import Path

import numpy as np

from drender import ForwardRenderer, InverseRenderer, cli, environment_maps
from drender.config import DEFAULT_PASSES
from drender.data.clips import LabeledClip, open_clips
from drender.lighting.estimation import estimate_environment
from drender.lighting.latlong import load_latlong
from drender.lighting.latlong_grid import pixel_directions, resize_latlong
from drender.media.color import LUMINANCE
from drender.media.images import write_png
from drender.metrics.image import psnr

NORMALS = np.random.default_rng(0).standard_normal((256, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("clips", type=cli.path)
    parser.add_argument("--count", type=int, help="number of clips (all)")
    parser.add_argument("--estimated", action="store_true", help="use the built-in model's G-buffers")
    parser.add_argument("--no-fov", action="store_true", help="estimate without the field of view")
    parser.add_argument("--relight", action="store_true", help="relight by the built-in forward model")
    parser.add_argument("--pictures", type=Path, help="folder for maps and mirror balls: the truth, and the estimate")
    args = parser.parse_args()
    inverse = InverseRenderer.load() if args.estimated else None
    forward = ForwardRenderer.load(lora_scale=0.0) if args.relight else None
    scores, layouts, relit, previous = [], [], [], None
    for clip in open_clips(args.clips, ("rgb", *DEFAULT_PASSES))[: args.count]:
        buffers = {label: np.stack([*clip.frames(label)]) for label in DEFAULT_PASSES}
        rgb, truth = np.stack([*clip.frames("rgb")]), true_light(clip)
        if inverse is not None:
            buffers = {name: frames[0] for name, frames in inverse(rgb[None], progress=False).items()}
        scene = json.loads((clip.folder / "scene.json").read_text())
        fov = None if args.no_fov else float(np.rad2deg(scene["fov"]))
        start, camera = time.process_time(), poses(clip)
        light = estimate_environment(rgb, buffers, fov, camera)
        seconds = time.process_time() - start
        unrelated = compare(previous, truth) if previous is not None else (np.nan,) * 3
        scores.append([*compare(light, truth), seconds, *unrelated])
        layouts.append(scene["layout"])
        row = "{} {}: {:5.1f}°, correlation {:.3f}, scale {:.2f}, {:.1f} s"
        print(row.format(clip.name, layouts[-1], *scores[-1][:4]), flush=True)
        if forward is not None and previous is not None:
            relit.append([relight(forward, buffers, rgb, light, camera) for light in (light, truth, previous)])
        if args.pictures:
            write_png(args.pictures / f"{clip.name}.png", picture(truth, light))
        previous = truth
    angle, correlation, scale, seconds, *unrelated = np.array(scores).T
    print(f"main direction: median {np.median(angle):.1f}°, mean {angle.mean():.1f}°")
    print(f"correlation of irradiance: mean {correlation.mean():.3f}, median {np.median(correlation):.3f}")
    print(f"scale: median {np.median(scale):.2f}; time: mean {seconds.mean():.1f} s, at most {seconds.max():.1f} s")
    print(f"unrelated: median {np.nanmedian(unrelated[0]):.1f}°, mean correlation {np.nanmean(unrelated[1]):.3f}")
    for layout in sorted(set(layouts)):
        chosen = np.array(layouts) == layout
        middle, mean = np.median(angle[chosen]), correlation[chosen].mean()
        print(f"{layout}, {chosen.sum()} clips: median {middle:.1f}°, mean correlation {mean:.3f}")
    if relit:
        own, true, wrong = np.mean(relit, axis=0)
        print(f"PSNR against the clip under its own light {own:.2f}, the true {true:.2f}, a wrong one {wrong:.2f} dB")


def true_light(clip: LabeledClip) -> np.ndarray:
    """Return the map that lights a clip under the default rotation of 180°."""
    light = clip.light()
    image = load_latlong(clip.folder / light.environment, light.rotation, light.flip, light.strength)
    return np.roll(image, image.shape[1] // 2, axis=1)


def poses(clip: LabeledClip) -> np.ndarray:
    """Return the poses in the axes of the light, in which a camera turns instead of the light."""
    light = clip.light()
    poses = np.array(light.poses, np.float32)
    for pose, angle in zip(poses, light.angles or np.zeros(len(poses)), strict=True):
        c, s = np.cos(angle), np.sin(angle)
        pose[:3, :3] = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ pose[:3, :3]
    return poses


def compare(light: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return the angle between the main directions in degrees, the correlation of irradiance, and the scale."""
    moments, irradiance = [], []
    for image in (light, truth):
        directions, solid_angles = pixel_directions(*image.shape[:2])
        power = (image.reshape(-1, 3) @ LUMINANCE) * solid_angles
        moments.append(power @ directions / np.linalg.norm(power @ directions))
        irradiance.append(np.maximum(NORMALS @ directions.T, 0) @ power)
    angle = np.rad2deg(np.arccos(np.clip(moments[0] @ moments[1], -1, 1)))
    return angle, np.corrcoef(*irradiance)[0, 1], irradiance[0].mean() / irradiance[1].mean()


def relight(forward, buffers: dict, rgb: np.ndarray, light: np.ndarray, camera: np.ndarray) -> float:
    """Return the PSNR against a clip of its G-buffers under a light."""
    maps = environment_maps(light, len(rgb), forward.environment_size, poses=camera)
    frames = forward({name: images[None] for name, images in buffers.items()}, maps, progress=False)[0]
    return float(np.mean(psnr(frames, rgb)))


def picture(truth: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return the maps and mirror balls of the true light and of the estimate, in two rows."""
    rows = []
    for image in (resize_latlong(np.asarray(truth, np.float32), light.shape[:2]), light):
        maps = environment_maps(image, 1, (128, 256))
        ball = environment_maps(image, 1, (128, 128), projection="ball")
        rows.append(np.concatenate([maps["env_ldr"][0], ball["env_ldr"][0]], axis=1))
    return np.concatenate(rows)


if __name__ == "__main__":
    cli.run(main)

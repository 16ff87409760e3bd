"""Compare highlights on a relit sphere with path tracing: python benchmarks/highlights.py [--checkpoint FOLDER]

A sphere of known material is inserted into the bundled G-buffers, or rendered alone, under one lamp in the dark.
The tables give the centroid of its brightest tenth, in sphere radii right of and above its center, beside the
path-traced one. Needs pip install "drender[data]".
"""

from dataclasses import replace

import numpy as np

from drender import ForwardRenderer, assets, cli, environment_maps
from drender.editing.insertion import CAMERA_DISTANCE, RenderedObject, ball_radius, insert
from drender.editing.materials import edit
from drender.lighting.latlong import load_latlong
from drender.media.color import LUMINANCE, srgb_to_linear
from drender.media.gbuffers import find_gbuffer_clips
from drender.synthetic import shapes
from drender.synthetic.atlas import TILE
from drender.synthetic.tracer import Tracer

SIZE, HEIGHT, FOV = (64, 64), 0.55, 35.0
LAMPS = {  # directions: x right, y up, z toward the camera
    "left": (-1, 0.25, 0.5), "right": (1, 0.25, 0.5), "top": (0, 1, 0.5),
    "upper left": (-0.7, 0.7, 0.5), "upper right": (0.7, 0.7, 0.5),
}  # fmt: skip
MATERIALS = {
    "smooth metal": {"basecolor": 0.95, "metallic": 1, "roughness": 0.1},
    "rough metal": {"basecolor": 0.95, "metallic": 1, "roughness": 0.4},
    "glossy white": {"basecolor": 0.9, "metallic": 0, "roughness": 0.2},
    "matte white": {"basecolor": 0.9, "metallic": 0, "roughness": 0.9},
}
NOTHING = {"basecolor": 0, "normal": (0.5, 0.5, 1), "depth": 1, "roughness": 0.5, "metallic": 0}


def main() -> None:
    parser = cli.Parser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--checkpoint", type=cli.path, help="checkpoint of the forward renderer; the built-in one by default"
    )
    forward = ForwardRenderer.load(parser.parse_args().checkpoint)
    (clip,) = find_gbuffer_clips(assets.GBUFFERS)
    scenes = {
        "in the scene": {label: next(clip.frames(label)) for label in clip.labels},
        "alone": {label: np.broadcast_to(np.float32(value), (*SIZE, 3)) for label, value in NOTHING.items()},
    }
    sphere = RenderedObject("sphere", height=HEIGHT, fov=FOV).layer("", 0, SIZE)
    tracer = tracer_of_sphere()
    sides, angles = {name: [] for name in scenes}, {name: [] for name in scenes}
    print(f"| material | lamp | traced | {' | '.join(scenes)} |\n|{'---|' * (3 + len(scenes))}")
    for material, values in MATERIALS.items():
        layer = replace(sphere, images=edit(sphere.images, set=values))
        linear = float(srgb_to_linear(np.float32(values["basecolor"])))
        surface = np.float32([linear, linear, linear, values["roughness"], values["metallic"]])
        tracer.set_materials([np.broadcast_to(surface, (TILE, TILE, 5))])
        for lamp, direction in LAMPS.items():
            sky = spot(direction)
            tracer.set_light(load_latlong(sky, 0.0), 0.0)
            traced = tracer.trace(np.eye(4, dtype=np.float32), np.deg2rad(FOV), 0).rgb @ LUMINANCE
            truth = brightest(traced, sphere.coverage[..., 0])
            places = []
            for name, buffers in scenes.items():
                shown, visible = insert(buffers, layer, layer.depth_range(), (0.0, 0.05))
                maps = environment_maps(sky, 1, forward.environment_size, rotation=0.0)
                lit = forward({label: image[None, None] for label, image in shown.items()}, maps)[0, 0]
                place = brightest(srgb_to_linear(lit) @ LUMINANCE, visible[..., 0])
                sides[name].append(place @ np.array(direction[:2]) / np.linalg.norm(direction[:2]))
                cosine = place @ truth / np.linalg.norm(place) / np.linalg.norm(truth)
                angles[name].append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
                places.append(place)
            print(f"| {material} | {lamp} | {' | '.join('{:+.2f} {:+.2f}'.format(*p) for p in (truth, *places))} |")
    for name in scenes:
        right, count = sum(side > 0.2 for side in sides[name]), len(sides[name])
        side, angle = np.mean(sides[name]), np.median(angles[name])
        print(f"{name}: {right} of {count} on the lamp's side by more than 0.2 radii, by {side:.2f} on average;")
        print(f"the direction is {angle:.0f}° (median) from the traced one")


def spot(direction, height: int = 64) -> np.ndarray:
    """Return a lat-long map of mean 1: 0.15 everywhere plus a lamp of 24° (x right, y up, z toward the camera)."""
    v, u = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(2 * height) + 0.5) / (2 * height), indexing="ij")
    polar, azimuth = np.pi * v, 2 * np.pi * (u - 0.5)
    directions = np.stack([np.sin(polar) * np.sin(azimuth), np.cos(polar), -np.sin(polar) * np.cos(azimuth)], axis=-1)
    lamp = directions @ (np.array(direction) / np.linalg.norm(direction)) > np.cos(np.deg2rad(12))
    image = np.full((height, 2 * height, 3), 0.15, np.float32)
    image[lamp] = 0.85 / np.average(lamp, weights=np.sin(polar))
    return image


def brightest(luminance: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Return the centroid of the brightest tenth of the sphere's pixels, without its rim, in sphere radii."""
    y, x = (np.mgrid[: SIZE[0], : SIZE[1]] + 0.5) / SIZE[0] - 0.5
    inside = (coverage > 0.95) & (np.hypot(x, y) < 0.92 * HEIGHT / 2)
    chosen = inside & (luminance >= np.quantile(luminance[inside], 0.9))
    return np.array([x[chosen].mean(), -y[chosen].mean()]) / (HEIGHT / 2)


def tracer_of_sphere() -> Tracer:
    """Return a tracer whose only object is the sphere."""
    tracer = Tracer(SIZE, 64)
    center = np.array([0, 0, -CAMERA_DISTANCE])
    radius = ball_radius(HEIGHT, np.deg2rad(FOV))
    tracer.set_objects([shapes.parametric("sphere", 0).placed(np.eye(3), radius, center)])
    return tracer


if __name__ == "__main__":
    cli.run(main)

"""Evaluate renderers on held-out synthetic clips beside untrained baselines; print tables for docs/quality.md.

    python -m drender.synthetic data/held-out --split test --clips 64 --lights 2 --seed 1
    python benchmarks/quality.py data/held-out [--inverse C] [--forward C] [--size H W] [--json FILE]

All predictions use the public interface. Every clip exists under two lights. The constant baseline is the mean of the
evaluated clips, so no other constant is better. Image-based lighting is `shading.py` with the true field of view.
Metrics are those of `python -m drender.metrics`.
"""

import functools
import json
from pathlib import Path

import numpy as np
import shading
from tqdm import tqdm

from drender import ForwardRenderer, InverseRenderer, cli
from drender.config import DEFAULT_PASSES, ENVIRONMENT_LABELS
from drender.data.clips import LabeledClip, open_clips
from drender.metrics import image
from drender.metrics.compare import write_json

Images = dict[str, np.ndarray]
# Row of a table -> image kind -> metric -> its value for every clip.
Tables = dict[str, dict[str, dict[str, list[float]]]]


def main() -> None:
    args = parser().parse_args()
    inverse = InverseRenderer.load(args.inverse)
    forward = ForwardRenderer.load(args.forward, lora_scale=0.0)
    sampled = InverseRenderer.load(args.inverse_sampled) if args.inverse_sampled else None
    clips = open_clips(args.clips, ("rgb", *DEFAULT_PASSES, *ENVIRONMENT_LABELS, "mask"))[: args.count]
    size = args.size or inverse.config.size
    images = [read(clip, size, forward.environment_size) for clip in tqdm(clips, desc="reading")]
    tables: Tables = {}
    nearer, changes = [], {}
    constant = {
        label: np.mean([clip_images[label] for clip_images in images], axis=(0, 1, 2, 3))
        for label in ("rgb", *DEFAULT_PASSES)
    }
    pairs = {clip.name: index for index, clip in enumerate(clips)}
    for clip, truth in zip(tqdm(clips, desc="comparing"), images, strict=True):
        add = functools.partial(compare, tables, truth)
        reconstructed = {label: reconstruct(inverse, truth[label]) for label in constant}
        buffers = predict(inverse, truth)
        many_steps = predict(sampled, truth) if sampled is not None else {}
        for label in DEFAULT_PASSES:
            add("VAE alone", label, reconstructed[label])
            add("inverse", label, buffers[label])
            add("best constant", label, np.broadcast_to(constant[label], truth[label].shape))
            if many_steps:
                add("inverse, 20 steps", label, many_steps[label])
        add("VAE alone", "rgb", reconstructed["rgb"])
        add("RGB as basecolor", "basecolor", truth["rgb"])
        rendered = relit(forward, truth, truth)
        add("forward, true G-buffers", "rgb", rendered)
        add("forward, estimated G-buffers", "rgb", relit(forward, buffers, truth))
        scene = json.loads((clip.folder / "scene.json").read_text())
        add("image-based lighting, true G-buffers", "rgb", shading.shade(truth, truth, scene["fov"]))
        add("image-based lighting, estimated G-buffers", "rgb", shading.shade(buffers, truth, scene["fov"]))
        add("basecolor as RGB", "rgb", truth["basecolor"])
        add("best constant", "rgb", np.broadcast_to(constant["rgb"], truth["rgb"].shape))
        one_step = {"rgb": rendered} | buffers
        for row, predictions in (("", one_step), (", 20 steps", many_steps), (", VAE alone", reconstructed)):
            for label, predicted in predictions.items():
                changes.setdefault(label + row, []).append([change(predicted), change(truth[label])])
        if (other := pairs.get(scene["other_light"])) is not None:
            relighting = relit(forward, buffers, images[other])
            compare(tables, images[other], "relighting, estimated G-buffers", "rgb", relighting)
            wrong, right = (np.square(relighting - target["rgb"]).mean() for target in (truth, images[other]))
            nearer.append(float(right < wrong))
    results = {row: clip_means(labels) for row, labels in tables.items()}
    report(results, nearer, changes)
    if args.json:
        ratios = {label: float(np.sum(x, axis=0)[0] / np.sum(x, axis=0)[1]) for label, x in changes.items()}
        write_json(args.json, {"tables": results, "nearer": float(np.mean(nearer)), "change": ratios})


def read(clip: LabeledClip, size: tuple[int, int], environment_size: tuple[int, int]) -> Images:
    return clip.images(
        ("rgb", "mask", *DEFAULT_PASSES, *ENVIRONMENT_LABELS), slice(0, clip.num_frames), size, environment_size
    )


def predict(inverse: InverseRenderer, truth: Images) -> Images:
    """Estimate the G-buffers of a clip."""
    return {label: frames[0] for label, frames in inverse(truth["rgb"][None], progress=False).items()}


def relit(forward: ForwardRenderer, buffers: Images, light: Images) -> np.ndarray:
    """Render G-buffers under the environment maps of a clip."""
    buffers = {label: buffers[label][None] for label in DEFAULT_PASSES}
    return forward(buffers, {label: np.array(light[label]) for label in ENVIRONMENT_LABELS}, progress=False)[0]


def reconstruct(inverse: InverseRenderer, frames: np.ndarray) -> np.ndarray:
    """Encode and decode frames by the auto-encoder alone."""
    latents = inverse.encode_images(frames)[None] * inverse.config.vae.scaling_factor
    return next(inverse.decode_latents(latents, len(frames)))[0]


def compare(tables: Tables, truth: Images, row: str, label: str, predicted: np.ndarray) -> None:
    """Add the metrics of one clip over the whole images and (`fg_`) over their foreground."""
    mask = truth["mask"].mean(-1) > 0.5
    predicted, target = np.asarray(predicted, np.float32), truth[label]
    scores = image.evaluate(label, predicted, target)
    if "psnr" not in scores:
        scores["psnr"] = float(np.mean(image.psnr(predicted, target)))
    if mask.any((1, 2)).any():
        scores |= {f"fg_{name}": x for name, x in image.evaluate(label, predicted, target, mask).items()}
    for name, value in scores.items():
        tables.setdefault(row, {}).setdefault(label, {}).setdefault(name, []).append(value)


def change(frames: np.ndarray) -> float:
    """Return the mean absolute difference between consecutive frames."""
    return float(np.abs(np.diff(frames, axis=0)).mean())


def clip_means(labels: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {label: {name: float(np.mean(x)) for name, x in scores.items()} for label, scores in labels.items()}


def report(results: dict, nearer: list[float], changes: dict[str, list]) -> None:
    for label in ("rgb", *DEFAULT_PASSES):
        rows = {row: labels[label] for row, labels in results.items() if label in labels}
        names = list(next(iter(rows.values())))
        print(f"\n| {label} | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
        for row, scores in rows.items():
            print(f"| {row} | " + " | ".join(f"{scores[name]:.4g}" for name in names) + " |")
    print(f"\nrelighting is closer to the right light in {100 * np.mean(nearer):.1f} % of {len(nearer)} clips")
    for label, pairs in changes.items():
        predicted, truth = np.sum(pairs, axis=0)
        print(f"change between frames, {label}: {predicted / truth:.2f} times that of the truth")


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__.partition("\n")[0])
    top.add_argument(
        "clips", type=Path, metavar="HELD_OUT", help="clips made by python -m drender.synthetic --lights 2"
    )
    for kind in ("inverse", "forward"):
        top.add_argument(f"--{kind}", type=cli.path, metavar="C", help="checkpoint; the built-in one by default")
    top.add_argument(
        "--inverse-sampled", type=cli.path, metavar="C", help="checkpoint to sample in 20 steps, for comparison"
    )
    top.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; the inverse renderer's by default")
    top.add_argument("--count", type=int, metavar="N", help="number of clips; all by default")
    top.add_argument("--json", type=cli.path, metavar="FILE", help="output file of the results")
    return top


if __name__ == "__main__":
    cli.run(main)

"""How good a pair of renderers is on held-out synthetic clips, beside untrained baselines; tables for docs/quality.md.

    python -m drender.synthetic data/held-out --split test --clips 64 --lights 2 --seed 1
    python benchmarks/quality.py data/held-out [--inverse C] [--forward C] [--inverse-sampled C] [--json FILE]

Everything goes through the public interface. Each clip is there under two lights. Of the baselines the constant is the
best one that there is, the mean of these very clips; image-based lighting is `shading.py`, of true G-buffers and with
the true field of view. Metrics are those of `python -m drender.metrics`.
"""

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
# The row of a table -> the image kind -> the metric -> its value for every clip.
Tables = dict[str, dict[str, dict[str, list[float]]]]


def main() -> None:
    args = parser().parse_args()
    inverse = InverseRenderer.load(args.inverse)
    forward = ForwardRenderer.load(args.forward, lora_scale=0.0)
    sampled = InverseRenderer.load(args.inverse_sampled) if args.inverse_sampled else None
    clips = open_clips(args.clips, ("rgb", *DEFAULT_PASSES, *ENVIRONMENT_LABELS, "mask"))[: args.count]
    images = [read(clip, inverse.config.size, forward.environment_size) for clip in tqdm(clips, desc="reading")]
    tables: Tables = {}
    nearer, moved = [], {}
    constant = {label: np.mean([one[label] for one in images], axis=(0, 1, 2, 3)) for label in ("rgb", *DEFAULT_PASSES)}
    pairs = {clip.name: index for index, clip in enumerate(clips)}
    for clip, truth in zip(tqdm(clips, desc="comparing"), images, strict=True):
        add = lambda row, label, predicted, truth=truth: compare(tables, row, label, predicted, truth)
        reconstructed = {label: through(inverse, truth[label]) for label in constant}
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
        ours = {"rgb": rendered} | buffers
        for row, images_of in (("", ours), (", 20 steps", many_steps), (", VAE alone", reconstructed)):
            for label, predicted in images_of.items():
                moved.setdefault(label + row, []).append([change(predicted), change(truth[label])])
        if (other := pairs.get(scene["other_light"])) is not None:
            relighting = relit(forward, buffers, images[other])
            add("relighting, estimated G-buffers", "rgb", relighting, images[other])
            error = lambda target, relighting=relighting: np.square(relighting - target["rgb"]).mean()
            nearer.append(float(error(images[other]) < error(truth)))
    results = {row: mean(labels) for row, labels in tables.items()}
    report(results, nearer, moved)
    if args.json:
        ratios = {label: float(np.sum(x, axis=0)[0] / np.sum(x, axis=0)[1]) for label, x in moved.items()}
        write_json(args.json, {"tables": results, "nearer": float(np.mean(nearer)), "change": ratios})


def read(clip: LabeledClip, size: tuple[int, int], environment_size: tuple[int, int]) -> Images:
    return clip.images(
        ("rgb", "mask", *DEFAULT_PASSES, *ENVIRONMENT_LABELS), slice(0, clip.num_frames), size, environment_size
    )


def predict(inverse: InverseRenderer, truth: Images) -> Images:
    return {label: frames[0] for label, frames in inverse(truth["rgb"][None], progress=False).items()}


def relit(forward: ForwardRenderer, buffers: Images, light: Images) -> np.ndarray:
    buffers = {label: buffers[label][None] for label in DEFAULT_PASSES}
    return forward(buffers, {label: np.array(light[label]) for label in ENVIRONMENT_LABELS}, progress=False)[0]


def through(inverse: InverseRenderer, frames: np.ndarray) -> np.ndarray:
    latents = inverse.encode_images(frames)[None] * inverse.config.vae.scaling_factor
    return next(inverse.decode_latents(latents, len(frames)))[0]


def compare(tables: Tables, row: str, label: str, predicted: np.ndarray, truth: Images) -> None:
    """Adds the metrics of one clip, of the whole images and (`fg_`) of what is no background."""
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
    """The mean absolute difference from frame to frame."""
    return float(np.abs(np.diff(frames, axis=0)).mean())


def mean(labels: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {label: {name: float(np.mean(x)) for name, x in scores.items()} for label, scores in labels.items()}


def report(results: dict, nearer: list[float], moved: dict[str, list]) -> None:
    for label in ("rgb", *DEFAULT_PASSES):
        rows = {row: labels[label] for row, labels in results.items() if label in labels}
        names = list(next(iter(rows.values())))
        print(f"\n| {label} | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
        for row, scores in rows.items():
            print(f"| {row} | " + " | ".join(f"{scores[name]:.4g}" for name in names) + " |")
    print(f"\nrelighting is nearer to the right light in {100 * np.mean(nearer):.1f} % of {len(nearer)} clips")
    for label, pairs in moved.items():
        ours, truth = np.sum(pairs, axis=0)
        print(f"change from frame to frame, {label}: {ours / truth:.2f} times that of the truth")


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__.partition("\n")[0])
    top.add_argument("clips", type=Path, metavar="HELD_OUT", help="made by python -m drender.synthetic --lights 2")
    for kind in ("inverse", "forward"):
        top.add_argument(f"--{kind}", type=cli.path, metavar="C", help="checkpoint (the built-in one)")
    top.add_argument("--inverse-sampled", type=cli.path, metavar="C", help="one to sample in 20 steps, to compare with")
    top.add_argument("--count", type=int, metavar="N", help="how many of the clips (all)")
    top.add_argument("--json", type=cli.path, metavar="FILE", help="to write")
    return top


if __name__ == "__main__":
    cli.run(main)

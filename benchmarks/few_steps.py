"""Compare inverse renderers by the quality of their G-buffers against the number of network calls.

    python benchmarks/few_steps.py data/held-out checkpoints/plain checkpoints/consistency [--steps 1 3 4 8 20]

Checkpoints are of inverse renderers, trained with `loss.one_step=false`. All sample with Euler from the same noise. The
Markdown table holds means over the clips. Of two steps the second is at σ = 0.002 and changes nothing.
"""

import itertools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drender import InverseRenderer, cli
from drender.data.clips import open_clips
from drender.metrics import image

# Of every G-buffer the metric that tells most, as `drender.metrics` names it.
SHOWN = {
    "basecolor": "psnr",
    "normal": "angular_mean",
    "depth": "correlation",
    "metallic": "rmse",
    "roughness": "rmse",
}


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("clips", type=Path, help="folder of held-out clips with G-buffers")
    parser.add_argument("renderers", nargs="+", type=Path, metavar="CHECKPOINT", help="inverse renderers")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 4, 8, 20], metavar="N", help="sampler steps")
    parser.add_argument("--count", type=int, help="number of clips (all)")
    args = parser.parse_args()

    print("| renderer | calls | " + " | ".join(f"{label}, {metric}" for label, metric in SHOWN.items()) + " |")
    print("|---" * (2 + len(SHOWN)) + "|")
    clips = open_clips(args.clips, ("rgb", *SHOWN))[: args.count]
    for path in args.renderers:
        inverse = InverseRenderer.load(path)
        size = inverse.config.size
        truths = [clip.images(("rgb", *SHOWN), slice(None), size, size) for clip in clips]
        scores = {steps: [] for steps in args.steps}
        for steps, truth in tqdm(list(itertools.product(args.steps, truths)), desc=path.name):
            found = inverse(
                truth["rgb"][None], tuple(SHOWN), num_steps=steps, deterministic=False, sampler="euler", progress=False
            )
            scores[steps].append([image.evaluate(x, found[x][0], truth[x])[metric] for x, metric in SHOWN.items()])
        for steps, values in scores.items():
            print(f"| {path.name} | {steps} | " + " | ".join(f"{x:.3g}" for x in np.mean(values, axis=0)) + " |")


if __name__ == "__main__":
    cli.run(main)

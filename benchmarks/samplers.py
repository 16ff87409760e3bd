"""Measure how close few sampling steps come to the exact solution: Euler, Heun and DPM-Solver++(2M).

    python benchmarks/samplers.py CHECKPOINT CLIPS [--plot docs/samplers.png]

CHECKPOINT is an inverse renderer trained with `loss.one_step=false`, CLIPS a folder of clips in the training layout.
Every sampler starts from the same noise, with a growing number of network calls. The distance is the RMS of the
latents' difference from 200 Heun steps, relative to their RMS. Prints a Markdown table.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from drender import InverseRenderer, cli, diffusion
from drender.config import DEFAULT_PASSES
from drender.data.clips import open_clips

STEPS = (4, 6, 8, 12, 20, 40)
EXACT = {"sampler": "heun", "num_steps": 200}


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of an inverse renderer")
    parser.add_argument("clips", type=Path, help="folder of clips")
    parser.add_argument("--count", type=int, default=4, help="number of clips")
    parser.add_argument("--rho", type=float, nargs="+", default=[diffusion.RHO], help="rho of the noise levels")
    parser.add_argument("--plot", type=Path, help="image file to draw (needs matplotlib)")
    args = parser.parse_args()

    inverse = InverseRenderer.load(args.checkpoint)
    size, frames = inverse.config.size, inverse.config.frames
    clips = open_clips(args.clips, ("rgb",))[: args.count]
    rgb = np.stack([clip.images(("rgb",), slice(0, frames), size, size)["rgb"] for clip in clips])
    latents = {}

    def sample(**options) -> np.ndarray:
        sampling = inverse.sampling({"deterministic": False} | options)
        latents.setdefault("rgb", inverse.encode(rgb, sampling))
        noise = inverse.initial_noise(None, sampling, latents["rgb"].shape)
        estimated = inverse.estimate(latents["rgb"], DEFAULT_PASSES, sampling, noise, progress=False)
        return np.stack([np.asarray(result.blended()) for _, result in estimated])

    exact = sample(**EXACT)
    scale = np.sqrt(np.square(exact).mean())
    distances = {}
    for name in tqdm(diffusion.SAMPLERS):
        for rho in args.rho:
            for steps in STEPS:
                result = sample(sampler=name, num_steps=steps, rho=rho)
                calls = diffusion.network_calls(name, steps)
                distances.setdefault((name, rho), {})[calls] = float(np.sqrt(np.square(result - exact).mean()) / scale)
    for (name, rho), by_calls in distances.items():
        row = " | ".join(f"{distance:.4f} ({calls})" for calls, distance in by_calls.items())
        print(f"| {name}, ρ = {rho:g} | {row} |")
    if args.plot:
        plot(distances, args.plot)


def plot(distances: dict[tuple[str, float], dict[int, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for (name, rho), by_calls in distances.items():
        axes.loglog(list(by_calls), list(by_calls.values()), "o-", label=f"{name}, ρ = {rho:g}")
    axes.set(xlabel="network calls", ylabel="relative distance to the solution")
    axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.run(main)

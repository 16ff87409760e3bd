"""How near few steps come to the solution: Euler, Heun and DPM-Solver++(2M) on a model that was trained to be sampled.

    python benchmarks/samplers.py CHECKPOINT CLIPS [--plot docs/samplers.png]

CHECKPOINT is an inverse renderer trained with `loss.deterministic=false`, CLIPS a folder of clips as training reads
them. From one and the same noise, every sampler is run at ever more calls of the network; the distance is the root mean
square of the latents' difference from 200 steps of Heun, in proportion to the root mean square of these. Prints a
Markdown table.
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
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--count", type=int, default=4, help="how many of the clips")
    parser.add_argument("--rho", type=float, nargs="+", default=[diffusion.RHO], help="of the noise levels")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    inverse = InverseRenderer.load(args.checkpoint)
    size, frames = inverse.config.size, inverse.config.frames
    clips = open_clips(args.clips, ("rgb",))[: args.count]
    rgb = np.stack([clip.images(("rgb",), slice(0, frames), size, size)["rgb"] for clip in clips])
    latents = {}

    def sample(**options) -> np.ndarray:
        sampling = inverse.sampling({"deterministic": False} | options)
        latents.setdefault("rgb", inverse.encode(rgb, sampling))
        noise = inverse.initial_noise(None, 0, latents["rgb"].shape)
        estimated = inverse.estimate(latents["rgb"], DEFAULT_PASSES, sampling, noise, progress=False)
        return np.stack([np.asarray(found.blended()) for _, found in estimated])

    exact = sample(**EXACT)
    scale = np.sqrt(np.square(exact).mean())
    distances = {}
    for name in tqdm(diffusion.SAMPLERS):
        for rho in args.rho:
            for steps in STEPS:
                found = sample(sampler=name, num_steps=steps, rho=rho)
                calls = diffusion.network_calls(name, steps)
                distances.setdefault((name, rho), {})[calls] = float(np.sqrt(np.square(found - exact).mean()) / scale)
    for (name, rho), found in distances.items():
        row = " | ".join(f"{distance:.4f} ({calls})" for calls, distance in found.items())
        print(f"| {name}, ρ = {rho:g} | {row} |")
    if args.plot:
        plot(distances, args.plot)


def plot(distances: dict[tuple[str, float], dict[int, float]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for (name, rho), found in distances.items():
        axes.loglog(list(found), list(found.values()), "o-", label=f"{name}, ρ = {rho:g}")
    axes.set(xlabel="calls of the network", ylabel="relative distance to the solution")
    axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.run(main)

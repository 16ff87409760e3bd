"""The same inverse pass with the same weights in PyTorch (diffusers' SVD modules) and here, alternating in one process.

    python benchmarks/against_torch.py RELEASED CONVERTED --frames 2 --size 64 64 --steps 2

RELEASED is an inverse renderer in the released layout, CONVERTED the same through `convert_weights.py`. Prints the
median time of each stage on each side, their ratio, and how far the results are apart. With one `--backends`, the peak
memory is that side's alone.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from drender import InverseRenderer, diffusion
from drender.config import DOMAINS

MICRO = [[6.0, 127.0, 0.0]]
STAGES = ("encode", "denoise", "decode", "total")


class Ours:
    def __init__(self, args):
        self.renderer = InverseRenderer.load(args.converted, args.dtype)
        self.sampling = self.renderer.sampling({"num_steps": args.steps, "frames": args.frames})

    def encode(self, rgb):
        return np.asarray(self.renderer.encode_images(rgb[0])[None])

    def denoise(self, noise, latents):
        ((_, result),) = self.renderer.estimate(latents, ["normal"], self.sampling, noise, progress=False)
        return np.asarray(result.blended())

    def decode(self, latents):
        return np.concatenate(list(self.renderer.decode_latents(latents, chunk=8)), axis=1)


class Torch:
    """The released pipeline's arithmetic, written with diffusers' networks."""

    def __init__(self, args):
        import torch
        from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
        from diffusers.utils import logging
        from safetensors.torch import load_file

        logging.set_verbosity_error()
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, args.dtype or "float32")
        load = lambda name: load_file(args.released / name / "diffusion_pytorch_model.safetensors")
        config = lambda name: json.loads((args.released / name / "config.json").read_text())

        def network(cls, name, weights):
            known = cls.__init__.__wrapped__.__code__.co_varnames
            with torch.device("meta"):
                module = cls(**{key: value for key, value in config(name).items() if key in known})
            module.load_state_dict(weights, assign=True)
            return module.to(self.device, self.dtype).eval()

        weights = load("unet")
        table = weights.pop("context_embedding.weight").float()
        token = table[DOMAINS["normal"]]
        self.context = (token * min(1.0, 10 / float(token.norm() + 1e-7)))[None, None].to(self.device, self.dtype)
        self.unet = network(UNetSpatioTemporalConditionModel, "unet", weights)
        self.vae = network(AutoencoderKLTemporalDecoder, "vae", load("vae"))
        self.sigmas = diffusion.karras_sigmas(args.steps, 0.002, 700.0).tolist()
        self.micro = torch.tensor(MICRO, device=self.device, dtype=self.dtype)

    def _in(self, x):
        return self.torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 2))).to(self.device)

    def _out(self, x):
        return np.moveaxis(x.float().cpu().numpy(), 2, -1)

    def encode(self, rgb):
        with self.torch.no_grad():
            x = self._in(rgb)[0].to(self.dtype) * 2 - 1
            return self._out(self.vae.encode(x).latent_dist.mode()[None])

    def denoise(self, noise, latents):
        with self.torch.no_grad():
            x = self._in(noise) * diffusion.initial_scale(700.0, "leading")
            latents = self._in(latents).to(self.dtype)
            for sigma, following in zip(self.sigmas[:-1], self.sigmas[1:], strict=True):
                scaled = (x / (sigma**2 + 1) ** 0.5).to(self.dtype)
                time_ = self.torch.tensor(float(np.log(sigma) / 4), device=self.device)
                rows = self.torch.cat([scaled, latents], dim=2)
                prediction = self.unet(rows, time_, self.context, self.micro, return_dict=False)[0].float()
                x0 = -sigma / (sigma**2 + 1) ** 0.5 * prediction + x / (sigma**2 + 1)
                x = x + (following - sigma) * (x - x0) / sigma
            return self._out(x)

    def decode(self, latents):
        with self.torch.no_grad():
            z = (self._in(latents)[0] / 0.18215).to(self.dtype)
            runs = [self.vae.decode(z[i : i + 8], num_frames=len(z[i : i + 8])).sample for i in range(0, len(z), 8)]
            return np.clip(self._out(self.torch.cat(runs)[None]) / 2 + 0.5, 0, 1)


def one_pass(side: Ours | Torch, rgb: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The frames, and the seconds that each stage took."""
    marks = [time.perf_counter()]
    latents = side.encode(rgb)
    marks.append(time.perf_counter())
    result = side.denoise(noise, latents)
    marks.append(time.perf_counter())
    frames = side.decode(result)
    marks.append(time.perf_counter())
    return frames, dict(zip(STAGES, [*np.diff(marks), marks[-1] - marks[0]], strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("released", type=Path)
    parser.add_argument("converted", type=Path)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--backends", nargs="+", choices=("ours", "torch"), default=("ours", "torch"))
    args = parser.parse_args()

    random = np.random.default_rng(0)
    rgb = random.random((1, args.frames, *args.size, 3), np.float32)
    noise = random.standard_normal((1, args.frames, *(side // 8 for side in args.size), 4), np.float32)
    sides = {}
    for name in args.backends:
        began = time.perf_counter()
        sides[name] = {"ours": Ours, "torch": Torch}[name](args)
        print(f"{name}: loaded in {time.perf_counter() - began:.1f} s")
    times = {name: {stage: [] for stage in STAGES} for name in sides}
    results = {}
    for _ in range(args.repeats + 1):
        for name, side in sides.items():
            results[name], spent = one_pass(side, rgb, noise)
            for stage, seconds in spent.items():
                times[name][stage].append(seconds)

    f, (h, w) = args.frames, args.size
    print(f"{jax.devices()[0].device_kind}, {args.dtype or 'float32'}, {f} frames {h}×{w}, {args.steps} steps, "
          f"median of {args.repeats}, seconds; the first call, which compiles, in brackets")  # fmt: skip
    for stage in STAGES:
        median = {name: statistics.median(spent[stage][1:]) for name, spent in times.items()}
        row = "  ".join(f"{name} {median[name]:8.3f} ({times[name][stage][0]:.1f})" for name in sides)
        print(f"{stage:8s} {row}" + (f"  ratio {median['torch'] / median['ours']:.2f}" if len(sides) == 2 else ""))
    if len(sides) == 2:
        print(f"largest difference of frames {np.abs(results['ours'] - results['torch']).max():.2e}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()

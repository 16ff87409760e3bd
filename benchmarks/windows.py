"""Measure long clips: the jump at window borders, and memory against length.

    python -m drender.synthetic data/long --clips 4 --frames 120 --split test --seed 3
    python benchmarks/windows.py seams data/long [--inverse C]
    python benchmarks/windows.py memory data/long [--plot docs/memory.png]

`seams` estimates the G-buffers of every clip in blended windows, and in separate chunks as the released scripts do. It
prints the mean absolute frame-to-frame difference at window or chunk borders, relative to that elsewhere. `memory` runs
`sample.py relight` on growing numbers of frames, one process each.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from drender import InverseRenderer, cli
from drender.config import DEFAULT_PASSES
from drender.data.clips import open_clips
from drender.media.images import write_png
from drender.renderers.windows import plan_windows
from drender.sampling.inputs import ChunkConfig, unique_frames

FRAMES, OVERLAP = 8, 2  # the built-in models' windows
LENGTHS = (16, 48, 144)


def seams(args) -> None:
    inverse = InverseRenderer.load(args.inverse)
    ratios = {
        method: {label: [] for label in DEFAULT_PASSES} for method in ("blended windows", "released chunks", "truth")
    }
    for clip in tqdm(open_clips(args.clips, ("rgb", *DEFAULT_PASSES))):
        images = clip.images(("rgb", *DEFAULT_PASSES), slice(0, clip.num_frames), inverse.config.size, (1, 1))
        for method, (buffers, borders) in {
            "blended windows": blended(inverse, images["rgb"]),
            "released chunks": chunked(inverse, images["rgb"]),
            "truth": (images, blended_borders(clip.num_frames)),
        }.items():
            for label in DEFAULT_PASSES:
                moved = np.abs(np.diff(buffers[label], axis=0)).mean(axis=(1, 2, 3))
                inside = np.setdiff1d(np.arange(len(moved)), borders)
                ratios[method][label].append((moved[borders].mean(), moved[inside].mean()))
    print("| | " + " | ".join(DEFAULT_PASSES) + " |\n|---|" + "---|" * len(DEFAULT_PASSES))
    for method, labels in ratios.items():
        at_borders, elsewhere = np.array([labels[label] for label in DEFAULT_PASSES]).sum(axis=1).T
        print(f"| {method} | " + " | ".join(f"{ratio:.2f}" for ratio in at_borders / elsewhere) + " |")


def blended(inverse: InverseRenderer, rgb: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    buffers = inverse(rgb[None], frames=FRAMES, overlap=OVERLAP, progress=False)
    return {label: frames[0] for label, frames in buffers.items()}, blended_borders(len(rgb))


def blended_borders(num_frames: int) -> np.ndarray:
    """Return the frames after which another set of windows contributes."""
    windows = plan_windows(num_frames, FRAMES, OVERLAP)
    return np.unique([[window.start - 1, window.stop - 1] for window in windows])[1:-1]


def chunked(inverse: InverseRenderer, rgb: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    chunks = ChunkConfig(FRAMES, OVERLAP, "all").plan(len(rgb))
    parts = {}
    for chunk in chunks:
        frames = np.minimum(np.arange(chunk.length) + chunk.start, chunk.stop - 1)  # the last frame fills the chunk
        parts[chunk] = inverse(rgb[frames][None], progress=False)
    shown = list(unique_frames(chunks, OVERLAP))
    buffers = {label: np.stack([parts[chunk][label][0, i] for chunk, i in shown]) for label in DEFAULT_PASSES}
    return buffers, np.array([i for i in range(len(shown) - 1) if shown[i][0] != shown[i + 1][0]])


def memory(args) -> None:
    clip = open_clips(args.clips, ("rgb",))[0]
    rgb = clip.images(("rgb",), slice(0, clip.num_frames), (64, 64), (1, 1))["rgb"]
    peaks = {}
    for length in LENGTHS:
        with tempfile.TemporaryDirectory() as folder:
            for i in range(length):
                # Play the clip forward and backward until it is long enough.
                frame = abs((i + len(rgb) - 1) % (2 * len(rgb) - 2) - len(rgb) + 1)
                write_png(Path(folder) / f"clip/{i:04d}.png", rgb[frame])
            command = [sys.executable, "sample.py", "relight", "--input", f"{folder}/clip", "--output", f"{folder}/out"]
            process = subprocess.Popen([*command, "--rotate-light"], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"sample.py failed with exit code {os.waitstatus_to_exitcode(status)}")
            peaks[length] = usage.ru_maxrss / 2**20
            print(f"{length:4d} frames: {peaks[length]:.2f} GiB", flush=True)
    if args.plot:
        plot(peaks, args.plot)


def plot(peaks: dict[int, float], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 2.5), layout="constrained")
    axes.plot(list(peaks), list(peaks.values()), "o-")
    axes.set(xlabel="frames", ylabel="peak memory, GiB", ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    add = parser.add_commands()
    commands = {"seams": seams, "memory": memory}
    for name in commands:
        command = add(name)
        command.add_argument("clips", type=Path, help="folder of clips")
    parser.commands["seams"].add_argument("--inverse", type=Path, help="checkpoint (built-in)")
    parser.commands["memory"].add_argument("--plot", type=Path, help="image file to draw (needs matplotlib)")
    args = parser.parse_args()
    commands[args.command](args)


if __name__ == "__main__":
    cli.run(main)

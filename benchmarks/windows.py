"""How long clips fare: the jump where one window ends and the next begins, and memory against length.

    python -m drender.synthetic data/long --clips 4 --frames 120 --split test --seed 3
    python benchmarks/windows.py seams data/long [--inverse C]
    python benchmarks/windows.py memory data/long [--plot docs/memory.png]

`seams` estimates the G-buffers of every clip in blended windows, and in separate chunks as the released scripts do. The
mean absolute difference of a frame and the next, where a window or a chunk begins or ends, is put in proportion to what
it is elsewhere. `memory` runs `sample.py relight` on ever more frames, in a process each.
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
from drender.sampling.inputs import plan_chunks
from drender.sampling.outputs import unique_frames

FRAMES, OVERLAP = 8, 2  # the built-in models' windows
LENGTHS = (16, 48, 144)


def seams(args) -> None:
    inverse = InverseRenderer.load(args.inverse)
    ratios = {way: {label: [] for label in DEFAULT_PASSES} for way in ("blended windows", "released chunks", "truth")}
    for clip in tqdm(open_clips(args.clips, ("rgb", *DEFAULT_PASSES))):
        images = clip.images(("rgb", *DEFAULT_PASSES), slice(0, clip.num_frames), inverse.config.size, (1, 1))
        for way, (buffers, borders) in {
            "blended windows": blended(inverse, images["rgb"]),
            "released chunks": chunked(inverse, images["rgb"]),
            "truth": (images, blended_borders(clip.num_frames)),
        }.items():
            for label in DEFAULT_PASSES:
                moved = np.abs(np.diff(buffers[label], axis=0)).mean(axis=(1, 2, 3))
                inside = np.setdiff1d(np.arange(len(moved)), borders)
                ratios[way][label].append((moved[borders].mean(), moved[inside].mean()))
    print("| | " + " | ".join(DEFAULT_PASSES) + " |\n|---|" + "---|" * len(DEFAULT_PASSES))
    for way, labels in ratios.items():
        at, elsewhere = np.array([labels[label] for label in DEFAULT_PASSES]).sum(axis=1).T
        print(f"| {way} | " + " | ".join(f"{ratio:.2f}" for ratio in at / elsewhere) + " |")


def blended(inverse: InverseRenderer, rgb: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    buffers = inverse(rgb[None], frames=FRAMES, overlap=OVERLAP, progress=False)
    return {label: frames[0] for label, frames in buffers.items()}, blended_borders(len(rgb))


def blended_borders(num_frames: int) -> np.ndarray:
    """The frames before which, or after which, the windows that have a part in a frame change."""
    windows = plan_windows(num_frames, FRAMES, OVERLAP)
    return np.unique([[window.start - 1, window.stop - 1] for window in windows])[1:-1]


def chunked(inverse: InverseRenderer, rgb: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    chunks = plan_chunks(len(rgb), FRAMES, OVERLAP, "all")
    filled = lambda chunk: rgb[np.minimum(np.arange(chunk.length) + chunk.start, chunk.stop - 1)]
    parts = {chunk: inverse(filled(chunk)[None], progress=False) for chunk in chunks}
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
                # There and back again, as often as it takes.
                write_png(
                    Path(folder) / f"clip/{i:04d}.png", rgb[abs((i + len(rgb) - 1) % (2 * len(rgb) - 2) - len(rgb) + 1)]
                )
            command = [sys.executable, "sample.py", "relight", "--input", f"{folder}/clip", "--output", f"{folder}/out"]
            process = subprocess.Popen([*command, "--rotate-light"], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"sample.py ended with {os.waitstatus_to_exitcode(status)}")
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
        command.add_argument("clips", type=Path)
    parser.commands["seams"].add_argument("--inverse", type=Path)
    parser.commands["memory"].add_argument("--plot", type=Path)
    args = parser.parse_args()
    commands[args.command](args)


if __name__ == "__main__":
    cli.run(main)

"""Kill `sample.py relight` at random moments, resume it, and compare the output with an uninterrupted run.

    python tests/stress/kill_resume.py [--kills 40] [--real 10] [--files 30] [--seed 0]

The job has two clips, two lights and an HTML report. Runs alternate between blended windows and separate chunks. Each
start is a process forked after the imports. SIGKILL ends it at a moment drawn uniformly from the duration of an
uninterrupted run, or it finishes first. It is restarted until it finishes.

Three series: `--kills` use arithmetic stand-ins for the networks (tests/helpers/stand_ins.py), so reading and writing
dominate. `--files` use the stand-ins too, but each kill comes just before or just after a randomly drawn file is
renamed into place; otherwise most kills would hit the report. `--real` use the built-in models. Every output file,
hidden ones included, must have the same bytes as in the uninterrupted run.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.extend(str(Path(__file__).parents[n]) for n in (1, 2))

import sample
from drender import cli
from drender.media.images import write_png
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer

MODES = ("blend", "all")
COMMAND = (
    "relight", "--frames", "4", "--overlap", "1", "--size", "64", "64", "--environment-size", "64", "64",
    "--steps", "2", "--html", "--devices", "1", "--environment", "night", "sunset",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="number of kills with stand-ins (40)")
    parser.add_argument("--real", type=int, default=10, help="number of kills with the built-in models (10)")
    parser.add_argument("--files", type=int, default=30, help="number of kills with stand-ins, at a file (30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    parser.add_argument("--minutes", type=float, default=60, help="no run starts after this time (60)")
    args = parser.parse_args()
    rng, deadline = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    print("| networks | moments | kills | runs | same bytes | left a partial file | last file written |")
    print("|---|---|---|---|---|---|---|")
    num_different = 0
    for real, moments, count in ((False, "time", args.kills), (False, "files", args.files), (True, "time", args.real)):
        if count:
            num_different += run_series(real, moments, count, rng, deadline)
    return int(num_different > 0)


def run_series(real: bool, moments: str, count: int, rng: random.Random, deadline: float) -> int:
    """Run until `count` kills happened, print a table row, and return the number of runs with different output."""
    kills, runs, same, partial, last_written = 0, 0, 0, 0, Counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for clip in range(2):
            write_clip(folder / f"in/clip{clip}", seed=clip)
        reference, duration = {}, {}
        for mode in MODES:
            began = time.monotonic()
            if start(command(folder, mode, mode), real, folder / "log") is not None:
                sys.exit(f"an uninterrupted run failed:\n{(folder / 'log').read_text()}")
            duration[mode] = time.monotonic() - began
            reference[mode] = contents(folder / mode)
        while kills < count and time.monotonic() < deadline:
            mode, output = MODES[runs % 2], folder / f"killed{runs}"
            while True:
                kills_again = kills < count and time.monotonic() < deadline
                delay = rng.uniform(0, duration[mode]) if kills_again and moments == "time" else None
                # A half-integer position kills just before the file appears.
                position = rng.randrange(2 * len(reference[mode])) / 2 if kills_again and moments == "files" else None
                result = start(command(folder, output.name, mode), real, folder / "log", delay, position)
                if result is None:
                    break
                if result != signal.SIGKILL:
                    sys.exit(f"run {runs} failed:\n{(folder / 'log').read_text()}")
                kills += 1
                partial += any(output.rglob(".*.part.*"))
                last_written[last_file(output)] += 1
            actual = contents(output)
            same += actual == reference[mode]
            report_differences(f"run {runs} ({mode})", actual, reference[mode])
            runs += 1
    files = ", ".join(f"{name} {number}" for name, number in last_written.most_common())
    networks = "built-in" if real else "stand-ins"
    print(f"| {networks} | {moments} | {kills} | {runs} | {same} | {partial} | {files} |", flush=True)
    return runs - same


def report_differences(run: str, actual: dict[str, bytes], expected: dict[str, bytes]) -> None:
    for file in sorted(actual.keys() ^ expected.keys()):
        print(f"{run}: {file} exists in only one of the outputs", file=sys.stderr)
    for file in sorted(actual.keys() & expected.keys()):
        if actual[file] != expected[file]:
            print(f"{run}: {file} differs", file=sys.stderr)


def command(folder: Path, output: str, mode: str) -> list[str]:
    return [*COMMAND, "--input", str(folder / "in"), "--output", str(folder / output), "--chunks", mode]


def start(
    arguments: list[str], real: bool, log: Path, delay: float | None = None, position: float | None = None
) -> int | None:
    """Run `sample.py` in a forked process; kill it after `delay` seconds or at a file.

    Args:
      position: count of files renamed into place before the kill; a half-integer kills before the rename.
    Returns:
      None on success, else the signal that ended the process, or its negated exit code.
    """
    child = os.fork()
    if child == 0:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
        if not real:
            from helpers.stand_ins import ForwardStandIn, InverseStandIn

            InverseRenderer.load = lambda *_: InverseStandIn()
            ForwardRenderer.load = lambda *_: ForwardStandIn()
        if position is not None:
            os.replace = killing_replace(os.replace, position)
        sys.argv = ["sample.py", *arguments]
        try:
            cli.run(sample.main)
        except SystemExit as stopped:
            os._exit(stopped.code)
        finally:
            os._exit(70)  # anything but SystemExit is a failure
    deadline = None if delay is None else time.monotonic() + delay
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return os.WTERMSIG(status)
            return -os.WEXITSTATUS(status) or None
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)


def killing_replace(replace: Callable, position: float) -> Callable:
    """Wrap `os.replace` to kill the process at a call: after it, or before it if `position` is a half-integer."""
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        if calls + 0.5 == position:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args, **kwargs)
        if calls == position:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    return wrapped


def last_file(output: Path) -> str:
    """Return the kind of the last file that a killed run wrote."""
    files = [path for path in output.rglob("*") if path.is_file()]
    if not files:
        return "nothing"
    name = max(files, key=lambda path: path.stat().st_mtime_ns).name
    kinds = {
        "latents": ".latents.", "report": "index", "video": ".viz.", "contact sheet": ".contact.", "record": ".json",
        "relit frame": ".env", "G-buffer frame": ".png",
    }  # fmt: skip
    return next((kind for kind, part in kinds.items() if part in name), name)


def write_clip(folder: Path, frames: int = 10, seed: int = 0) -> None:
    for i, image in enumerate(np.random.default_rng(seed).random((frames, 64, 64, 3)).astype(np.float32)):
        write_png(folder / f"{i:03d}.png", image)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, hidden files included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    cli.run(main)

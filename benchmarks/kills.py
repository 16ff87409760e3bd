"""Kills `sample.py relight` at random moments, starts it again until it ends, and compares with an uninterrupted run.

    python benchmarks/kills.py [--kills 40] [--real 10] [--files 30] [--seed 0]

Two clips, two lights, a page; in turn one chunk of blended windows and separate chunks. Every start is a process of its
own, forked after the imports, which ends by SIGKILL at a moment drawn evenly from the time that an uninterrupted one
took, unless it is done before. `--kills` are of runs whose networks are replaced by arithmetic (tests/stand_ins.py), so
that most of their time is reading and writing; `--real` are of the built-in models. As the page takes most of the
former, `--files` kills are drawn evenly from the files instead: just before one appears under its name, or just after.
All files must be the same, byte for byte, hidden ones too.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.extend(str(Path(__file__).parents[1] / name) for name in (".", "tests"))

import sample
from drender import cli
from drender.media.images import write_png
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer

MODES = ("blend", "all")
COMMAND = (
    "relight", "--frames", "4", "--overlap", "1", "--size", "64", "64", "--environment-size", "64", "64",
    "--steps", "2", "--html", "--devices", "1",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="of runs with stand-ins (40)")
    parser.add_argument("--real", type=int, default=10, help="of runs with the built-in models (10)")
    parser.add_argument("--files", type=int, default=30, help="of runs with stand-ins, at a file (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--minutes", type=float, default=60, help="after which no further run is begun (60)")
    args = parser.parse_args()
    moments, ends = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    print("| networks | moments | kills | runs | same bytes | left a part of a file | last file written |")
    print("|---|---|---|---|---|---|---|")
    bad = 0
    for real, by, wanted in ((False, "time", args.kills), (False, "files", args.files), (True, "time", args.real)):
        if wanted:
            bad += series(real, by, wanted, moments, ends)
    return int(bad > 0)


def series(real: bool, by: str, wanted: int, moments: random.Random, ends: float) -> int:
    """Runs until `wanted` kills are done; prints a row of the table. Returns how many runs came out otherwise."""
    kills, runs, same, parts, stages = 0, 0, 0, 0, Counter()
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
        while kills < wanted and time.monotonic() < ends:
            mode, output = MODES[runs % 2], folder / f"killed{runs}"
            while True:
                go_on = kills < wanted and time.monotonic() < ends
                delay = moments.uniform(0, duration[mode]) if go_on and by == "time" else None
                # Halves: before a file appears.
                file = moments.randrange(2 * len(reference[mode])) / 2 if go_on and by == "files" else None
                killed = start(command(folder, output.name, mode), real, folder / "log", delay, file)
                if killed is None:
                    break
                if killed != signal.SIGKILL:
                    sys.exit(f"run {runs} failed:\n{(folder / 'log').read_text()}")
                kills += 1
                parts += any(output.rglob(".*.part.*"))
                stages[stage(output)] += 1
            runs += 1
            found = contents(output)
            same += found == reference[mode]
            for file in sorted(found.keys() ^ reference[mode].keys()):
                print(f"run {runs - 1} ({mode}): {file} is not in both", file=sys.stderr)
            for file in sorted(found.keys() & reference[mode].keys()):
                if found[file] != reference[mode][file]:
                    print(f"run {runs - 1} ({mode}): {file} differs", file=sys.stderr)
    where = ", ".join(f"{name} {count}" for name, count in stages.most_common())
    print(
        f"| {'built-in' if real else 'stand-ins'} | {by} | {kills} | {runs} | {same} | {parts} | {where} |",
        flush=True,
    )
    return runs - same


def command(folder: Path, output: str, mode: str) -> list[str]:
    files = ("--input", str(folder / "in"), "--output", str(folder / output))
    return [*COMMAND, *files, "--environment", "night", "sunset", "--chunks", mode]


def start(
    arguments: list[str], real: bool, log: Path, delay: float | None = None, file: float | None = None
) -> int | None:
    """Runs `sample.py` in a process, killed after `delay` seconds or at a `file`.

    Returns None if it ended well, or why not: the signal, or a negative exit code.
    """
    child = os.fork()
    if child == 0:
        with log.open("w") as said:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        if not real:
            from helpers.stand_ins import ForwardStandIn, InverseStandIn

            InverseRenderer.load = lambda *_: InverseStandIn()
            ForwardRenderer.load = lambda *_: ForwardStandIn()
        if file is not None:
            os.replace = killing(os.replace, file)
        sys.argv = ["sample.py", *arguments]
        try:
            cli.run(sample.main)
        except SystemExit as stopped:
            os._exit(stopped.code)
        finally:
            os._exit(70)  # what is no SystemExit is no good end
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


def killing(replace, file: float):
    """An `os.replace` that kills the process at a call: after its work, or before it if `file` is no whole number."""
    calls = 0

    def call(*arguments, **how):
        nonlocal calls
        if calls + 0.5 == file:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments, **how)
        if calls == file:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    return call


def stage(output: Path) -> str:
    """What a killed run wrote last."""
    files = [path for path in output.rglob("*") if path.is_file()]
    if not files:
        return "nothing"
    name = max(files, key=lambda path: path.stat().st_mtime_ns).name
    kinds = {
        "latents": ".latents.", "page": "index", "video": ".viz.", "contact sheet": ".contact.", "record": ".json",
        "relit frame": ".env", "G-buffer frame": ".png",
    }  # fmt: skip
    return next((kind for kind, part in kinds.items() if part in name), name)


def write_clip(folder: Path, frames: int = 10, seed: int = 0) -> None:
    for i, image in enumerate(np.random.default_rng(seed).random((frames, 64, 64, 3)).astype(np.float32)):
        write_png(folder / f"{i:03d}.png", image)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    cli.run(main)

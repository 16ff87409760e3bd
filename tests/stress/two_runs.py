"""Start two different `sample.py relight` on one output folder at random offsets, and check that they never mix.

    python tests/stress/two_runs.py [--rounds 50] [--seed 0]

Both use arithmetic stand-ins for the networks (tests/helpers/stand_ins.py). Exactly one run may write. Its exit code is
0 and its files are those of an undisturbed run. The other one exits with code 2 and one line: the folder is being
written, or holds results of another environment.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[n]) for n in (1, 2))

from stress.kill_resume import contents, write_clip

import sample
from drender import cli
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer

LIGHTS = ("sunset", "studio")
COMMAND = (
    "relight", "--frames", "4", "--overlap", "1", "--size", "64", "64", "--environment-size", "64", "64",
    "--devices", "1",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="number of pairs (50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the offsets (0)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = run_rounds(Path(folder), args.rounds, random.Random(args.seed))
    print("| outcome of the second run | rounds |\n|---|---|")
    for outcome, count in counts.items():
        print(f"| {outcome} | {count} |")
    return int(counts["mixed"] > 0)


def run_rounds(folder: Path, rounds: int, rng: random.Random) -> Counter:
    """Return how often each outcome occurred."""
    write_clip(folder / "in/clip", frames=6)
    reference, duration = {}, 0.0
    for light in LIGHTS:
        began = time.monotonic()
        code, message = wait(*start(folder, light, folder / light))
        assert code == 0, message
        duration = time.monotonic() - began
        reference[light] = contents(folder / light)
    counts = Counter(mixed=0)
    for number in range(rounds):
        output = folder / f"out{number}"
        first = start(folder, LIGHTS[0], output)
        time.sleep(rng.uniform(0, 1.1 * duration) * rng.choice((0, 0.1, 1)))
        runs = [first, start(folder, LIGHTS[1], output)]
        results = dict(zip(LIGHTS, [wait(*run) for run in runs], strict=True))
        counts[outcome(results, contents(output), reference)] += 1
    return counts


def outcome(results: dict[str, tuple[int, str]], written: dict[str, bytes], reference: dict) -> str:
    """Return how a pair of runs ended; "mixed" breaks the promise."""
    winners = [light for light, (code, _) in results.items() if code == 0]
    if len(winners) != 1 or written != reference[winners[0]]:
        print(results, sorted(name for name in written if written[name] not in reference.values()), file=sys.stderr)
        return "mixed"
    (loser,) = set(LIGHTS) - set(winners)
    code, message = results[loser]
    errors = [line for line in message.splitlines() if line.startswith("error: ")]
    if code != 2 or len(errors) != 1:
        print(message, file=sys.stderr)
        return "mixed"
    return "refused: being written" if "is writing there" in errors[0] else "refused: other settings"


def start(folder: Path, light: str, output: Path) -> tuple[int, Path]:
    """Fork a run, and return its process and log."""
    log = folder / f"{light}.log"
    child = os.fork()
    if child == 0:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 1), os.dup2(stream.fileno(), 2)
        from helpers.stand_ins import ForwardStandIn, InverseStandIn

        InverseRenderer.load = lambda *_: InverseStandIn()
        ForwardRenderer.load = lambda *_: ForwardStandIn()
        sys.argv = [
            "sample.py",
            *COMMAND,
            "--environment",
            light,
            "--input",
            str(folder / "in"),
            "--output",
            str(output),
        ]
        try:
            cli.run(sample.main)
        except SystemExit as stopped:
            os._exit(stopped.code)
        finally:
            os._exit(70)  # anything but SystemExit is a failure
    return child, log


def wait(child: int, log: Path) -> tuple[int, str]:
    """Return the exit code and the output of a run."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


if __name__ == "__main__":
    cli.run(main)

"""Check and measure everything on the GPU of this machine, and write a Markdown report.

    python benchmarks/gpu.py --output outputs/gpu
    JAX_PLATFORMS=cpu python benchmarks/gpu.py --tiny --output outputs/tiny    # rehearse without a GPU

Parts: parity with the released pipeline's golden results in each dtype, a relit clip of the built-in models, compile
times and the roofline's prediction for the programs as compiled here, all stages beside PyTorch, a training step, and
`torch.compile` last, because it takes longest. Each is a process of its own with a time limit. Its output and its log
are kept in the folder OUTPUT, with all compiled programs, and OUTPUT/report.md is rewritten after each. The same
command continues an interrupted run and repeats failed parts.

Comparisons with PyTorch need the extra `oracle`, with a PyTorch for the GPU; without it a line says that they are left
out.
"""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from drender import cli
from drender.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
# Seconds that each part may take on a GPU, 13 minutes in all. A rehearsal may take 20 times as long.
LIMITS = {"goldens": 60, "relight": 60, "roofline": 120, "speed": 180, "training": 150, "compiled": 180}
# Frames, height and width, sampling steps and dtype of the clip.
SCALES = {"tiny": (4, 64, 2, "float32"), "full": (24, 512, 20, "bfloat16")}


def commands(scale: str, output: Path) -> dict[str, list[str]]:
    """Return the command of every part, after `python`."""
    frames, side, steps, dtype = map(str, SCALES[scale])
    clip = ["--model", scale, "--frames", frames, "--size", side, side, "--steps", steps, "--dtype", dtype]
    speed = ["benchmarks/speed.py", *clip, "--repeats", "2", "--backends"]
    return {
        "goldens": ["benchmarks/gpu_parts.py", "goldens", scale],
        "relight": ["sample.py", "relight", "--environment", "forest", "--output", str(output / "relit")],
        "roofline": ["benchmarks/plan.py", "roofline", *clip, "--here"],
        "speed": [*speed, "drender", "torch"],
        "training": ["benchmarks/gpu_parts.py", "training", scale],
        # On a CPU, compiling the tiny UNet takes PyTorch minutes.
        "compiled": [*speed, "torch.compile", "--stages", "encode" if scale == "tiny" else "denoise"],
    }


def run_parts(scale: str, output: Path) -> int:
    """Run the parts that have no result yet, and rewrite the report after each. Return 1 if a part failed."""
    header = describe(scale, output)
    output.mkdir(parents=True, exist_ok=True)
    parts, failures = commands(scale, output), {}
    write_report(header, parts, output, failures)
    for name, command in parts.items():
        result = output / f"{name}.md"
        if not result.exists():
            print(f"{name} …", flush=True)
            if reason := run_part(command, result, LIMITS[name] * (20 if scale == "tiny" else 1)):
                failures[name] = f"failed: {reason}; see {name}.log"
            print(f"{name}: {failures.get(name, 'done')}", flush=True)
            write_report(header, parts, output, failures)
    print(f"written: {output / 'report.md'}")
    return 1 if failures else 0


def describe(scale: str, output: Path) -> str:
    """Return the report's first lines: the device and the versions.

    Raises:
      InputError: JAX finds no GPU, or `output` holds anything else than results of this device, scale and commit.
    """
    # In a process of its own, because JAX takes most of a GPU's memory where it first touches the GPU.
    probe = [sys.executable, "benchmarks/gpu_parts.py", "about", scale]
    process = subprocess.run(probe, cwd=ROOT, env=environment(output), capture_output=True, text=True)
    if process.returncode:
        raise InputError(f"JAX found no device: {last_line(process.stderr)}")
    platform, header = process.stdout.split("\n", 1)
    if scale == "full" and platform != "gpu":
        raise InputError("JAX found no GPU; install the extra cuda12 or cuda13, or rehearse on a CPU with --tiny")
    report = output / "report.md"
    is_ours = report.is_file() and report.read_text().startswith(header)
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not is_ours):
        raise InputError(f"--output {output}: holds other results than of this device, scale and commit; give another")
    return header


def environment(output: Path) -> dict[str, str]:
    paths = [ROOT, ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(output / "xla")}
    return os.environ | cache | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


def run_part(command: list[str], result: Path, limit: float) -> str | None:
    """Run a part and keep its output in `result`; a part that fails leaves RESULT.partial. Return why it failed."""
    partial, log = result.with_suffix(".partial"), result.with_suffix(".log")
    began = time.monotonic()
    with partial.open("w") as out, log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment(result.parent),
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit} s"
        finally:
            # With its workers, which would hold the GPU.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        return last_line(log.read_text(errors="replace")) or f"exit status {process.returncode}"
    with partial.open("a") as out:
        out.write(f"\n{datetime.date.today()}, {time.monotonic() - began:.0f} s in all.\n")
    partial.replace(result)
    return None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def write_report(header: str, parts: dict[str, list[str]], output: Path, failures: dict[str, str]) -> None:
    lines = [header]
    for name, command in parts.items():
        lines += [f"## {name}", "", f"`python {' '.join(command)}`", ""]
        result = output / f"{name}.md"
        if not result.exists():
            lines += [f"**{failures.get(name, 'not run yet')}**", ""]
            result = result.with_suffix(".partial")
        lines += [result.read_text(errors="replace")] if result.exists() else []
    (output / "report.md").write_text("\n".join(lines))


def main() -> int:
    parser = cli.Parser(prog="benchmarks/gpu.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=cli.path, default="outputs/gpu", metavar="FOLDER", help="folder of the results"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny networks and clips, to rehearse on a CPU")
    args = parser.parse_args()
    return run_parts("tiny" if args.tiny else "full", Path(args.output).resolve())


if __name__ == "__main__":
    cli.run(main)

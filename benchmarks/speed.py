"""Time the stages of the renderers beside the same networks in PyTorch (diffusers modules).

    python benchmarks/speed.py --model full --frames 24 --size 512 512 --dtype bfloat16 --append docs/performance.md
    python benchmarks/speed.py --model tiny

MODEL is "tiny" or "full" (the released sizes) with random weights, "builtin", or the folder of a converted checkpoint.
All backends have the same weights and inputs. Each runs in its own process, so that peak memory is its own, and they
take turns stage by stage. A backend that fails is left out with its error.

Stages: `encode` and `decode` pass all frames through the VAE, `environment` passes as many maps through the environment
encoder. `denoise` samples a clip in `--steps` steps. The forward renderer's has guidance and a still light, and
includes the light's tokens. FLOPs are drender's, counted on the jaxpr. The peak is the TFLOP/s of a large matrix
product timed in the same turns. Memory is the peak of a stage with all networks. JAX cannot reset a GPU's peak, so
there it includes the stages before.

On CPUs the machine should be idle. PyTorch's threads spin while waiting, so other work makes PyTorch many times slower.
OMP_WAIT_POLICY=passive then helps, but halves its speed on an idle machine.
"""

import os

# The backends share the GPU, and their memory is measured.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import argparse
import datetime
import multiprocessing
import subprocess
import tempfile
import time
import zlib
from pathlib import Path

import jax
import numpy as np
import plan
from backends import BACKENDS, GUIDANCE, PASS, STAGES, reset_peak_memory
from recorder import StageCall

from drender import assets
from drender.checkpoints import orbax
from drender.config import DTYPES, RendererConfig
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.registry import NETWORKS

# --- backends as processes -------------------------------------------------------------------------------------------


class Worker:
    """A backend in its own process, called one method at a time."""

    def __init__(self, name: str, path: Path, kind: str, args):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, name, path, kind, args), daemon=True)
        self.process.start()
        end.close()
        self.error = None
        self.load = self.call()

    def call(self, method: str | None = None):
        """Return (seconds, result) of a method, or None once a call failed; `error` holds the reason."""
        if self.error is not None:
            return None
        try:
            if method:
                self.pipe.send(method)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            answer = f"the process ended ({self.process.exitcode}); out of memory?"
        if isinstance(answer, str):
            self.error = answer
            return None
        return answer

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def _serve(pipe, name: str, path: Path, kind: str, args) -> None:
    try:
        began = time.perf_counter()
        backend = BACKENDS[name](path, kind, args)
        backend.reset_memory()  # exclude the peak of loading
        pipe.send((time.perf_counter() - began, None))
        while True:
            method = pipe.recv()
            began = time.perf_counter()
            result = getattr(backend, method)()
            pipe.send((time.perf_counter() - began, result))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300])


# --- models and the table --------------------------------------------------------------------------------------------


def prepare_checkpoint(args, kind: str, folder: Path) -> Path:
    """Return the checkpoint of a model; write one to `folder` for random weights."""
    model = args.model
    if model == "builtin":
        return assets.checkpoint(kind)
    if model not in ("tiny", "full"):
        return Path(model)
    config = {"tiny": plan.tiny, "full": plan.full}[model](kind)
    networks = [name for name in NETWORKS if getattr(config, name) is not None]
    params = {name: lambda name=name: random_params(name, config, args.dtype or "float32") for name in networks}
    orbax.save(folder / kind, config, params)
    return folder / kind


def random_params(name: str, config: RendererConfig, dtype: str) -> dict:
    """Return random parameters: kernels preserve the variance, norms and biases are near their usual initial values.

    All are slices of one random array, because drawing a billion numbers takes longer than the benchmark.
    """
    numbers = np.random.default_rng(0).standard_normal(2**22 + 1, np.float32)

    def draw(path: str, leaf) -> np.ndarray:
        kind = path.rpartition(".")[2]
        x = np.resize(np.roll(numbers, zlib.crc32(path.encode())), leaf.shape)
        if kind == "kernel":
            x /= np.float32(np.sqrt(leaf.size / leaf.shape[-1]))
        elif kind not in ("embedding", "mix_factor"):
            x = (kind == "scale") + np.float32(0.1) * x
        return x.astype(dtype)

    abstract = flatten(abstract_module(NETWORKS[name], getattr(config, name))[1])
    return unflatten({path: draw(path, leaf) for path, leaf in abstract.items()})


def count_tflop(config: RendererConfig, args) -> dict[str, float]:
    """Return the TFLOP of every stage."""
    clip = {"dtype": "float32", "num_frames": args.frames, "size": args.size}
    clip |= {"num_steps": args.steps, "frames": args.frames, "deterministic": False}
    if config.kind == "forward":
        clip |= {"guidance": GUIDANCE, "drop": config.conditions}

    def total(stages: list[StageCall], *names: str) -> float:
        return sum(plan.operations(stage) * stage.count for stage in stages if stage.name in names)

    stages = plan.stages(config, **clip, passes=(PASS,))
    result = {name: total(stages, name) for name in ("encode", "decode")}
    result["denoise"] = total(stages, "denoise", "environment")
    if config.kind == "forward":
        result["environment"] = total(plan.stages(config, **clip, light_frames=args.frames), "environment")
    return result


def report(kind: str, path: Path, args) -> tuple[str, dict[str, dict[str, float]]]:
    """Measure a renderer; return a Markdown section, and seconds by stage and backend."""
    began = time.perf_counter()
    tflop = count_tflop(orbax.load_config(path), args)
    workers = {name: Worker(name, path, kind, args) for name in args.backends}
    stages = [stage for stage in STAGES[kind] if stage in args.stages]
    times: dict[tuple[str, str], list[float]] = {}
    results, peak = {}, 0.0
    for turn in range(args.repeats + 1):
        for stage in stages:
            for name, worker in workers.items():
                if answer := worker.call(stage):
                    times.setdefault((stage, name), []).append(answer[0])
                    results[stage, name] = answer[1]
        if "drender" in workers and (answer := workers["drender"].call("peak")):
            peak = max(peak, float(answer[1]))
        print(f"{kind}: turn {turn} of {args.repeats} done at {time.perf_counter() - began:.0f} s", flush=True)

    memory = {}
    for stage in stages:
        for name, worker in workers.items():
            for method in ("reset_memory", stage, "memory"):
                answer = worker.call(method)
            memory[stage, name] = answer and answer[1]

    rows, measured = [], {}
    for stage in stages:
        # Other work on the machine can only add to a time, so the fastest turn counts. The first one compiles.
        fastest = {name: min(times[stage, name][1:]) for name in workers if len(times.get((stage, name), [])) > 1}
        measured[f"{kind}: {stage}"] = fastest
        cells = [stage, f"{tflop[stage]:.3g}"]
        for name in args.backends:
            seconds = fastest.get(name)
            cells.append(f"{seconds:.3f} ({times[stage, name][0]:.1f})" if seconds else "–")
            if name == "drender":
                cells.append(f"{tflop[stage] / seconds:.3g}" if seconds else "–")
                cells.append(f"{100 * tflop[stage] / seconds / peak:.0f} %" if seconds and peak else "–")
            elif "drender" in args.backends:
                cells.append(f"{seconds / fastest['drender']:.2f}" if seconds and "drender" in fastest else "–")
        cells += [f"{gib:.2f}" if (gib := memory[stage, name]) else "–" for name in args.backends]
        cells.append(difference(results.get((stage, "drender")), results.get((stage, "torch"))))
        rows.append("| " + " | ".join(cells) + " |")

    notes = []
    if peak:
        notes.append(f"drender loaded in {workers['drender'].load[0]:.1f} s; matrix product {peak:.3g} TFLOP/s")
    about = [answer[1] for worker in workers.values() if (answer := worker.call("about"))]
    notes += [f"{name} left out: {worker.error}" for name, worker in workers.items() if worker.error]
    for worker in workers.values():
        worker.close()
    header = ["stage", "TFLOP"]
    for name in args.backends:
        header += [f"{name}, s"]
        header += ["TFLOP/s", "of peak"] if name == "drender" else ["ratio"] if "drender" in args.backends else []
    header += [*(f"{name}, GiB" for name in args.backends), "difference"]
    text = "\n".join([
        f"### {args.model}, {kind}, {args.frames} frames {args.size[0]}×{args.size[1]}, {args.steps} steps",
        "",
        f"{'; '.join(about)}; commit {commit()}, {datetime.date.today()}. Fastest of {args.repeats} turns, seconds; in "
        "brackets the first call, which compiles or reads the compilation cache.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *rows,
        "",
        *(f"- {note}" for note in notes),
        "",
    ])  # fmt: skip
    return text, measured


def plot(measured: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the seconds of every stage, one bar per backend."""
    import matplotlib.pyplot as plt

    backends = list(dict.fromkeys(name for seconds in measured.values() for name in seconds))
    figure, axes = plt.subplots(figsize=(6, 0.5 + 0.5 * len(measured)), layout="constrained")
    height = 0.8 / len(backends)
    for i, name in enumerate(backends):
        positions = [row + (i - (len(backends) - 1) / 2) * height for row in range(len(measured))]
        axes.barh(positions, [seconds.get(name, 0.0) for seconds in measured.values()], height, label=name)
    axes.set_yticks(range(len(measured)), list(measured))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds")
    axes.legend()
    figure.savefig(path, dpi=120)


def difference(actual: np.ndarray | None, expected: np.ndarray | None) -> str:
    """Return the largest difference relative to the largest expected value."""
    if actual is None or expected is None:
        return "–"
    return f"{np.abs(actual - expected).max() / np.abs(expected).max():.1e}"


def commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    all_stages = tuple(dict.fromkeys(stage for stages in STAGES.values() for stage in stages))
    parser.add_argument("--model", default="tiny", help="tiny, full, builtin or a checkpoint folder (tiny)")
    parser.add_argument("--kinds", nargs="+", choices=STAGES, default=list(STAGES), help="renderers (both)")
    parser.add_argument("--stages", nargs="+", choices=all_stages, default=all_stages, help="stages to time (all)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS), help="backends (all)")
    parser.add_argument("--frames", type=int, default=4, help="frames of the clip (4)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"), help="pixels (64 64)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="compute dtype (float32 on CPUs, else bfloat16)")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns, after one that compiles (5)")
    parser.add_argument("--append", type=Path, help="Markdown file to append the tables to")
    parser.add_argument("--plot", type=Path, help="image file to draw the times into (needs matplotlib)")
    args = parser.parse_args()
    # This process only counts FLOPs; leave the GPU to the backends.
    jax.config.update("jax_platforms", "cpu")

    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            path = prepare_checkpoint(args, kind, Path(folder))
            reset_peak_memory()  # otherwise two full-size backends and these arrays need more than 24 GiB
            text, seconds = report(kind, path, args)
            measured |= seconds
            # Print at once, so that an aborted run still shows the finished renderer.
            print(text, flush=True)
            if args.append:
                with args.append.open("a") as file:
                    file.write("\n" + text)
    if args.plot:
        plot(measured, args.plot)


if __name__ == "__main__":
    main()

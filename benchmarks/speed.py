"""How fast the renderers are, stage by stage, beside the same networks in PyTorch (diffusers' modules).

    python benchmarks/speed.py --model full --frames 24 --size 512 512 --dtype bfloat16 --append benchmarks/RESULTS.md
    python benchmarks/speed.py --model tiny

MODEL is "tiny" or "full" (the released renderers' sizes) with random weights that this makes, "builtin", or the folder
of a converted checkpoint. Both sides have the same weights and inputs, and a process each, so that each one's peak
memory is its own; they take turns, stage by stage. A side that cannot work is left out, with its reason.

Stages: `encode` and `decode` take all frames through the auto-encoder, `environment` as many maps through the encoder
of environments, `denoise` is a clip from noise to latents in `--steps` steps, of the forward renderer with guidance
under a still light, its tokens included. FLOP are ours, counted on the jaxpr; the peak is that of a large matrix
product, taken in turns with everything else. Memory is the most that a stage holds, networks included; on a card, where
JAX cannot count anew, the most that it and those before it held.

On CPUs the machine should be idle: PyTorch's threads spin while they wait for one another. Where other work goes on
that makes it many times slower, and OMP_WAIT_POLICY=passive helps, which on an idle machine halves its speed.
"""

import os

# Both sides share the card, and what they hold is to be seen.
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
from backends import GUIDANCE, PASS, SIDES, STAGES, forget

from drender import assets
from drender.checkpoints import orbax
from drender.config import DTYPES, RendererConfig
from drender.models.params import abstract_module, flatten, unflatten
from drender.models.registry import NETWORKS

# --- sides as processes ----------------------------------------------------------------------------------------------


class Side:
    """A side in a process of its own, which answers one question at a time."""

    def __init__(self, name: str, path: Path, kind: str, args):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, name, path, kind, args), daemon=True)
        self.process.start()
        end.close()
        self.error = None
        self.load = self.ask()

    def ask(self, method: str | None = None):
        """(seconds, result) of a method; None once something failed, of which `error` tells."""
        if self.error is not None:
            return None
        try:
            if method:
                self.pipe.send(method)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            answer = f"the process ended ({self.process.exitcode}); is memory short?"
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
        side = SIDES[name](path, kind, args)
        side.forget()  # how it loads is no part of it
        pipe.send((time.perf_counter() - began, None))
        while True:
            method = pipe.recv()
            began = time.perf_counter()
            result = getattr(side, method)()
            pipe.send((time.perf_counter() - began, result))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300])


# --- models and the table --------------------------------------------------------------------------------------------


def prepared(args, kind: str, folder: Path) -> Path:
    """The checkpoint of a model, made where it is one of random weights."""
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
    """Kernels that keep the variance, norms and biases a little off their usual start.

    All are cut from one stretch of random numbers: to draw a billion takes longer than all that is measured.
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


def counted(config: RendererConfig, args) -> dict[str, float]:
    """TFLOP of every stage."""
    clip = {"dtype": "float32", "num_frames": args.frames, "size": args.size}
    clip |= {"num_steps": args.steps, "frames": args.frames, "deterministic": False}
    if config.kind == "forward":
        clip |= {"guidance": GUIDANCE, "drop": config.conditions}
    total = lambda found, *names: sum(plan.operations(s) * s.calls for s in found if s.name in names)
    found = plan.stages(config, **clip, passes=(PASS,))
    result = {name: total(found, name) for name in ("encode", "decode")}
    result["denoise"] = total(found, "step", "environment")
    if config.kind == "forward":
        result["environment"] = total(plan.stages(config, **clip, light_frames=args.frames), "environment")
    return result


def report(kind: str, path: Path, args) -> tuple[str, dict[str, dict[str, float]]]:
    """A renderer's stages, measured: in Markdown, and stage -> side -> seconds."""
    began = time.perf_counter()
    tera = counted(orbax.load_config(path), args)
    sides = {name: Side(name, path, kind, args) for name in args.sides}
    stages = [stage for stage in STAGES[kind] if stage in args.stages]
    times: dict[tuple[str, str], list[float]] = {}
    results, peak = {}, 0.0
    for turn in range(args.repeats + 1):
        for stage in stages:
            for name, side in sides.items():
                if answer := side.ask(stage):
                    times.setdefault((stage, name), []).append(answer[0])
                    results[stage, name] = answer[1]
        if "ours" in sides and (answer := sides["ours"].ask("peak")):
            peak = max(peak, float(answer[1]))
        print(f"{kind}: turn {turn} of {args.repeats} done at {time.perf_counter() - began:.0f} s", flush=True)

    memory = {}
    for stage in stages:
        for name, side in sides.items():
            for method in ("forget", stage, "memory"):
                answer = side.ask(method)
            memory[stage, name] = answer and answer[1]

    rows, measured = [], {}
    for stage in stages:
        # Other work on the machine only ever adds to a time.
        least = {name: min(times[stage, name][1:]) for name in sides if len(times.get((stage, name), [])) > 1}
        measured[f"{kind}: {stage}"] = least
        cells = [stage, f"{tera[stage]:.3g}"]
        for name in args.sides:
            seconds = least.get(name)
            cells.append(f"{seconds:.3f} ({times[stage, name][0]:.1f})" if seconds else "–")
            if name == "ours":
                cells.append(f"{tera[stage] / seconds:.3g}" if seconds else "–")
                cells.append(f"{100 * tera[stage] / seconds / peak:.0f} %" if seconds and peak else "–")
            elif "ours" in args.sides:
                cells.append(f"{seconds / least['ours']:.2f}" if seconds and "ours" in least else "–")
        cells += [f"{held:.2f}" if (held := memory[stage, name]) else "–" for name in args.sides]
        cells.append(difference(results.get((stage, "ours")), results.get((stage, "torch"))))
        rows.append("| " + " | ".join(cells) + " |")

    notes = []
    if peak:
        notes.append(f"ours loaded in {sides['ours'].load[0]:.1f} s; matrix product {peak:.3g} TFLOP/s")
    about = [answer[1] for side in sides.values() if (answer := side.ask("about"))]
    notes += [f"{name} left out: {side.error}" for name, side in sides.items() if side.error]
    for side in sides.values():
        side.close()
    heads = ["stage", "TFLOP"]
    for name in args.sides:
        heads += [f"{name}, s"]
        heads += ["TFLOP/s", "of peak"] if name == "ours" else ["ratio"] if "ours" in args.sides else []
    heads += [*(f"{name}, GiB" for name in args.sides), "difference"]
    text = "\n".join([
        f"### {args.model}, {kind}, {args.frames} frames {args.size[0]}×{args.size[1]}, {args.steps} steps",
        "",
        f"{'; '.join(about)}; commit {commit()}, {datetime.date.today()}. Least of {args.repeats} turns, seconds; in "
        "brackets the first call, which compiles or reads the compiled code from disk.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *rows,
        "",
        *(f"- {note}" for note in notes),
        "",
    ])  # fmt: skip
    return text, measured


def plot(measured: dict[str, dict[str, float]], path: Path) -> None:
    """Draws every stage's seconds, a bar per side."""
    import matplotlib.pyplot as plt

    sides = list(dict.fromkeys(name for least in measured.values() for name in least))
    figure, axes = plt.subplots(figsize=(6, 0.5 + 0.5 * len(measured)), layout="constrained")
    height = 0.8 / len(sides)
    for i, name in enumerate(sides):
        places = [row + (i - (len(sides) - 1) / 2) * height for row in range(len(measured))]
        axes.barh(places, [least.get(name, 0.0) for least in measured.values()], height, label=name)
    axes.set_yticks(range(len(measured)), list(measured))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds")
    axes.legend()
    figure.savefig(path, dpi=120)


def difference(ours, theirs) -> str:
    """The largest difference, beside the largest of their numbers."""
    if ours is None or theirs is None:
        return "–"
    return f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"


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
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--kinds", nargs="+", choices=STAGES, default=list(STAGES))
    every = tuple(dict.fromkeys(stage for stages in STAGES.values() for stage in stages))
    parser.add_argument("--stages", nargs="+", choices=every, default=every)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=DTYPES, default=None)
    parser.add_argument("--repeats", type=int, default=5, help="turns that count; one before them compiles")
    parser.add_argument("--append", type=Path, help="a Markdown file")
    parser.add_argument("--plot", type=Path, help="a picture of the times to draw (needs matplotlib)")
    args = parser.parse_args()
    # This process only counts; the card is for the sides.
    jax.config.update("jax_platforms", "cpu")

    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds:
            # Each at once, so that a run that is cut off has told what it knows.
            path = prepared(args, kind, Path(folder))
            forget()  # or two full-size sides and what was made here need more than 24 GiB
            text, of_kind = report(kind, path, args)
            measured |= of_kind
            print(text, flush=True)
            if args.append:
                with args.append.open("a") as file:
                    file.write("\n" + text)
    if args.plot:
        plot(measured, args.plot)


if __name__ == "__main__":
    main()

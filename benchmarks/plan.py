"""What a clip takes, ahead of time: every stage's arithmetic, and its memory on a card that is not there.

    python benchmarks/plan.py arithmetic --frames 24 --size 512 512 --steps 20
    JAX_PLATFORMS=cpu python benchmarks/plan.py memory --frames 24 --size 512 512

A renderer is made of shapes instead of parameters, and works through a clip with stages that only note what they are
called with: a full-size model needs no memory, and nothing here repeats what the renderers do.

`arithmetic` counts matrix products and convolutions on the jaxpr, and prints what the exact savings save. `memory`
compiles for an H100, or for the `--devices` that share a clip, with the package jax-cuda12-plugin[with_cuda] and no
card: what each holds, and what it is sent by the others. Its plan leaves out the workspaces of cuDNN and the CUDA
context.
"""

import argparse
import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from train_cost import GIB, find_devices

from drender.config import CONDITIONS, DEFAULT_PASSES, DTYPES, ENVIRONMENT_LABELS, RendererConfig, UNetConfig, VAEConfig
from drender.models import attention
from drender.models.params import abstract_module
from drender.models.registry import NETWORKS
from drender.renderers.base import Renderer
from drender.renderers.forward import ForwardRenderer
from drender.renderers.inverse import InverseRenderer
from drender.sharding import SINGLE_DEVICE, DeviceGroup
from drender.training import flops, init

RENDERERS = {"inverse": InverseRenderer, "forward": ForwardRenderer}
# As a compiled program spells them.
DTYPE_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "s32": "int32", "u32": "uint32"}
# What the compiled stages are called here, and where a renderer has them.
NAMES = {"encode": "_encode", "environment": "_encode_light", "step": "_clean", "decode": "_decode"}


@dataclass
class Stage:
    """One shape of a stage.

    Attributes:
      name: "encode", "environment", "step" or "decode".
      fn: the compiled function of the renderer.
      arguments: what it is called with, as shapes; the network's parameters first.
      split: how a team of devices shares its rows and frames.
      calls: how often.
    """

    name: str
    fn: Callable
    arguments: tuple
    split: jax.sharding.NamedSharding | None = None
    calls: int = 0

    @property
    def frames(self) -> int:
        """Frames of all clips that a call works on."""
        return math.prod(self.arguments[1].shape[:2])


def full(kind: str) -> RendererConfig:
    """The configuration of the released renderers."""
    return _config(kind, UNetConfig(), VAEConfig(), 1024)


def tiny(kind: str) -> RendererConfig:
    """The same with few channels, and four frames of 64×64 for a clip."""
    levels = (32, 32, 64, 64)
    unet = UNetConfig(
        block_out_channels=levels,
        num_attention_heads=(1, 2, 2, 4),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
    )
    config = _config(kind, unet, VAEConfig(block_out_channels=levels), 48)
    return dataclasses.replace(config, size=(64, 64), frames=4, environment_size=(64, 64))


def _config(kind: str, unet: UNetConfig, vae: VAEConfig, width: int) -> RendererConfig:
    """width: of the context token of the inverse renderer."""
    svd = dataclasses.replace(unet, cross_attention_dim=width, temporal_cross_attention_dim=width)
    return init.renderer_config(kind, RendererConfig("svd", svd, vae))


def abstract(config: RendererConfig, dtype: str, team: DeviceGroup = SINGLE_DEVICE) -> Renderer:
    """A renderer of shapes, on devices that need not be there."""
    networks = [name for name in NETWORKS if getattr(config, name) is not None]
    shapes = {name: abstract_module(NETWORKS[name], getattr(config, name))[1] for name in networks}
    of = lambda x: jax.ShapeDtypeStruct(x.shape, dtype)
    renderer = RENDERERS[config.kind](config, jax.tree.map(of, shapes), team)
    renderer._shared = lambda stage, network, rows: stage(renderer.params[network], rows, team.split(*rows.shape[:2]))
    return renderer


def stages(
    config: RendererConfig,
    dtype: str,
    num_frames: int,
    size: tuple[int, int],
    *,
    passes: tuple[str, ...] = ("normal",),
    light_frames: int = 1,
    drop: tuple[str, ...] = (),
    team: DeviceGroup = SINGLE_DEVICE,
    **sampling,
) -> list[Stage]:
    """The stages that sampling a clip takes, in order.

    Args:
      num_frames, size: of the clip; height and width.
      passes: of the inverse renderer.
      light_frames: of the forward renderer's environment; 1 is a still light.
      drop: what the forward renderer is not given.
      team: devices that share the clip.
      **sampling: fields of `config.Sampling`.
    """
    renderer = abstract(config, dtype, team)
    found: list[Stage] = []
    for name, attribute in NAMES.items():
        if hasattr(renderer, attribute):
            setattr(renderer, attribute, _noting(name, getattr(renderer, attribute), found))
    _sample(renderer, num_frames, size, passes, light_frames, drop, sampling)
    return found


def _noting(name: str, fn: Callable, found: list[Stage]) -> Callable:
    """Stands where `fn` does: notes what it is called with, and gives zeros of the shapes that it would."""
    known: dict = {}

    def call(*arguments):
        *arrays, split = arguments
        shapes = jax.tree.map(_shape, tuple(arrays))
        key = jax.tree.structure(shapes), tuple((x.shape, x.dtype) for x in jax.tree.leaves(shapes)), split
        if key not in known:
            stage = Stage(name, fn, shapes, split)
            known[key] = stage, fn.eval_shape(*shapes, split=split)
            found.append(stage)
        stage, results = known[key]
        stage.calls += 1
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), results)

    return call


def _shape(x) -> jax.ShapeDtypeStruct:
    if not isinstance(x, jax.ShapeDtypeStruct):
        x = jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x))
    return x


def _sample(renderer: Renderer, num_frames, size, passes, light_frames, drop, sampling) -> None:
    grey = lambda frames, size: np.full((1, frames, *size, 3), 0.5, np.float32)
    clip = grey(num_frames, size)
    if isinstance(renderer, InverseRenderer):
        renderer(clip, passes, progress=False, **sampling)
        return
    light = grey(light_frames, renderer.environment_size)
    light[:, 1::2] += 0.25  # where all frames are alike the light counts as still
    buffers = dict.fromkeys(renderer.config.conditions, clip)
    renderer(buffers, dict.fromkeys(ENVIRONMENT_LABELS, light), drop=drop, progress=False, **sampling)


# --- arithmetic ------------------------------------------------------------------------------------------------------

# TFLOP for 24 frames of 512×512, counted on the released networks: a call of the UNet; all frames through the others.
RELEASED = {"inverse step": 30.4, "forward step": 33.3, "encode": 26.8, "decode": 73.0, "environment": 7.0}


def arithmetic(args) -> None:
    """Prints what a clip takes, stage by stage, and what the exact savings save."""
    clip = {"dtype": "bfloat16", "num_frames": args.frames, "size": args.size, "num_steps": args.steps}
    inverse, forward = full("inverse"), full("forward")
    cases = {
        "inverse, one pass": stages(inverse, **clip),
        "inverse, five passes": stages(inverse, **clip, passes=DEFAULT_PASSES),
        "forward, guided, still light": stages(forward, **clip),
        "forward, guided, moving light": stages(forward, **clip, light_frames=args.frames),
    }
    print(f"TFLOP of {args.frames} frames {args.size[0]}×{args.size[1]}, {args.steps} steps\n")
    print("| | stage | calls | frames a call | TFLOP a call | TFLOP |\n|---|---|---|---|---|---|")
    for case, found in cases.items():
        for stage in found:
            each = operations(stage)
            print(f"| {case} | {stage.name} | {stage.calls} | {stage.frames} | {each:.3f} | {each * stage.calls:.1f} |")
            case = ""
        print(f"| | **all** | | | | **{sum(operations(stage) * stage.calls for stage in found):.1f}** |")

    step = lambda *case, **options: operations(find(stages(*case, **clip | options), "step"))
    of = lambda case, name: sum(operations(stage) * stage.calls for stage in cases[case] if stage.name == name)
    one, guided, moving = (operations(find(cases[case], "step")) for case in cases if case != "inverse, five passes")
    plain = step(forward, guidance=1.0)
    plain_moving = step(forward, guidance=1.0, light_frames=args.frames)
    attended = count_two_tokens(find(cases["inverse, one pass"], "step"))
    still, turning = "forward, guided, still light", "forward, guided, moving light"
    kept, kept_moving = (keys_and_values(forward, find(cases[case], "step")) for case in (still, turning))
    of_light = lambda case: of(case, "environment")
    encoding = lambda case: of(case, "encode")
    rows = [
        ("a step: attention over the one token of a domain is a projection", attended, one),
        ("a guided step, still light: no environment attention in the unconditional half", 2 * plain, guided),
        ("the same, moving light", 2 * plain_moving, moving),
        ("a still light's tokens for one frame", of_light(turning), of_light(still)),
        ("a still light's maps encoded for one frame, beside the G-buffers", encoding(turning), encoding(still)),
        ("a still light's keys and values for one frame, a guided step", moving, guided),
        ("RGB encoded once for five passes", 5 * encoding("inverse, one pass"), encoding("inverse, five passes")),
        ("not done: keys and values of a still light kept over the steps, a guided step", guided, guided - kept),
        ("not done: the same, moving light", moving, moving - kept_moving),
    ]
    print("\n| saving | TFLOP without | with | saved |\n|---|---|---|---|")
    for name, without, with_ in rows:
        print(f"| {name} | {without:.2f} | {with_:.2f} | {100 * (1 - with_ / without):.2f} % |")


def operations(stage: Stage) -> float:
    """TFLOP of one call."""
    # What is compiled with options of its own may stand in no other traced function.
    return flops.count(stage.fn.__wrapped__, *stage.arguments) / 1e12


def find(found: list[Stage], name: str) -> Stage:
    return next(stage for stage in found if stage.name == name)


def count_two_tokens(step: Stage) -> float:
    """TFLOP of a step that has attention over its context: of two tokens, the fewest that take any."""
    params, conditions, context, *rest = step.arguments
    b, f, n, e = context.shape
    context = jax.ShapeDtypeStruct((b, f, 2 * n, e), context.dtype)
    return operations(dataclasses.replace(step, arguments=(params, conditions, context, *rest)))


def keys_and_values(config: RendererConfig, step: Stage) -> float:
    """TFLOP of the projections of the environment's tokens in a step."""
    params, _, context, *_ = step.arguments
    total, last = 0, len(context) - 1
    for name, leaf in params.flatten(params).items():
        if found := re.fullmatch(
            r"(\w+)\.(?:(\d+)\.)?attentions.*\.transformer_blocks\.\d+\.attn2\.to_[kv]\.kernel", name
        ):
            path, index = found[1], int(found[2] or 0)
            level = {"down_blocks": index, "mid_block": last, "up_blocks": last - index}[path]
            total += 2 * math.prod(context[level].shape[:3]) * leaf.size
    return total / 1e12


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(args) -> None:
    """Compiles the stages for an H100 that is not there, and prints what XLA plans to hold for each."""
    # What `attend` asks of the card, which is not there to be asked.
    attention._has_fused_attention = lambda: True
    cards = tuple(find_devices("h100", args.devices))
    team = DeviceGroup(cards)
    sharding = team.replicated or jax.sharding.SingleDeviceSharding(cards[0])
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    # What is worst: all frames in one window, a moving light, and guidance. One condition is as good as five.
    clip = {"num_frames": args.frames, "frames": args.frames, "size": args.size, "num_steps": 1, "guidance": 1.2}
    clip |= {"light_frames": args.frames, "drop": CONDITIONS[1:], "team": team}
    print(
        f"GiB on each of {len(cards)}: {args.frames} frames {args.size[0]}×{args.size[1]} in {args.dtype}, guided, "
        "sampled in one window\n"
    )
    print("| | stage | all networks | arguments | to work in | results | together | sent |\n|---" + "|---" * 7 + "|")
    for kind in args.kinds:
        held = sum(map(size_of, jax.tree.leaves(abstract(full(kind), args.dtype).params)))
        for stage in stages(full(kind), args.dtype, **clip):
            if stage.name not in args.stages:
                continue
            began = time.monotonic()
            arguments = jax.tree.map(place, stage.arguments)
            traced = stage.fn.trace(*arguments, split=stage.split)
            compiled = traced.lower(lowering_platforms=("cuda",)).compile()
            plan = compiled.memory_analysis()
            own = sum(map(size_of, jax.tree.leaves(arguments[1:])))
            needs = [held, own, plan.temp_size_in_bytes, plan.output_size_in_bytes]
            cells = " | ".join(f"{n / GIB:.2f}" for n in needs)
            print(
                f"| {kind} | {stage.name} of {stage.frames} frames | {cells} | **{sum(needs) / GIB:.2f}** "
                f"| {sent(compiled.as_text()) / GIB:.2f} |",
                flush=True,
            )
            print(f"compiled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def sent(program: str) -> int:
    """Bytes that a device gets from the others in a compiled program, as the results of its collective operations."""
    total = 0
    for types in re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", program):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            size = math.prod(int(side) for side in shape.split(",") if side)
            total += size * jnp.dtype(DTYPE_NAMES.get(kind, "uint8")).itemsize
    return total


def size_of(x) -> int:
    return x.size * np.dtype(x.dtype).itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("arithmetic", "memory"):
        command = commands.add_parser(name)
        command.add_argument("--frames", type=int, default=24)
        command.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
        if name == "arithmetic":
            command.add_argument("--steps", type=int, default=20)
        else:
            command.add_argument("--devices", type=int, default=1, help="that share the clip")
            command.add_argument("--dtype", choices=DTYPES, default="bfloat16")
            command.add_argument("--kinds", nargs="+", choices=RENDERERS, default=list(RENDERERS))
            command.add_argument("--stages", nargs="+", choices=NAMES, default=list(NAMES))
    args = parser.parse_args()
    {"arithmetic": arithmetic, "memory": memory}[args.command](args)


if __name__ == "__main__":
    main()

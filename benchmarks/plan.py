"""Count a clip's arithmetic, and plan its memory for GPUs that need not be present.

    python benchmarks/plan.py arithmetic --frames 24 --size 512 512 --steps 20
    JAX_PLATFORMS=cpu python benchmarks/plan.py memory --frames 24 --size 512 512
    JAX_PLATFORMS=cpu python benchmarks/plan.py roofline inverse decode --gpu H200

`recorder.py` records the compiled calls for a clip, with shapes for parameters. So a full-size model needs no
memory, and the plan repeats no logic of the renderers.

`arithmetic` counts matrix products and convolutions on the jaxpr, and prints what the exact savings save. `memory`
compiles for an H100, or for `--devices` that share a clip, and prints what each holds and receives. cuDNN workspaces
and the CUDA context are not included. `roofline` compiles the stages and a training step for an H100, counts the bytes
and the arithmetic of their kernels (`roofline.py`), and predicts their time on a named GPU. Both need the package
jax-cuda12-plugin with its CUDA libraries, and no GPU.
"""

import argparse
import dataclasses
import math
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import roofline as model
from recorder import RENDERERS, StageCall, abstract, record
from train_cost import GIB, compile_ahead, find_devices

from drender.config import CONDITIONS, DEFAULT_PASSES, DTYPES, ENVIRONMENT_LABELS, RendererConfig, UNetConfig, VAEConfig
from drender.models.params import flatten
from drender.renderers.inverse import InverseRenderer
from drender.sharding import SINGLE_DEVICE, DeviceGroup
from drender.training import flops, init
from drender.training.config import read_config

# By their names in HLO.
DTYPE_NAMES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "s32": "int32", "u32": "uint32"}
STAGES = ("encode", "environment", "denoise", "decode")
ROOFLINES = ("encode", "environment", "inverse", "forward", "decode", "training")


def full(kind: str) -> RendererConfig:
    """Return the configuration of a released renderer."""
    return _config(kind, UNetConfig(), VAEConfig(), 1024)


def tiny(kind: str) -> RendererConfig:
    """Return the same with few channels, for clips of four frames 64×64."""
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
    """Return a configuration whose inverse context token has `width` channels."""
    svd = dataclasses.replace(unet, cross_attention_dim=width, temporal_cross_attention_dim=width)
    return init.renderer_config(kind, RendererConfig("svd", svd, vae))


def stages(
    config: RendererConfig,
    dtype: str,
    num_frames: int,
    size: tuple[int, int],
    *,
    passes: tuple[str, ...] = ("normal",),
    light_frames: int = 1,
    drop: tuple[str, ...] = (),
    group: DeviceGroup = SINGLE_DEVICE,
    **sampling,
) -> list[StageCall]:
    """Return the compiled calls that sample a clip, in order of first use.

    Args:
      num_frames, size: length, and height and width of the clip.
      passes: passes of the inverse renderer.
      light_frames: frames of the forward renderer's environment; 1 is a still light.
      drop: conditions that the forward renderer does without.
      group: devices that share the clip.
      **sampling: fields of `config.Sampling`.
    """
    renderer = abstract(config, dtype, group)
    clip = np.full((1, num_frames, *size, 3), 0.5, np.float32)
    if isinstance(renderer, InverseRenderer):
        return record(renderer, clip, passes, **sampling)
    light = np.full((1, light_frames, *renderer.environment_size, 3), 0.5, np.float32)
    light[:, 1::2] += 0.25  # a light whose frames are all equal counts as still
    buffers = dict.fromkeys(config.conditions, clip)
    return record(renderer, buffers, dict.fromkeys(ENVIRONMENT_LABELS, light), drop=drop, **sampling)


# --- arithmetic ------------------------------------------------------------------------------------------------------


def arithmetic(args) -> None:
    """Print the arithmetic of a clip by stage, and what the exact savings save."""
    clip = {"dtype": "bfloat16", "num_frames": args.frames, "size": args.size, "num_steps": args.steps}
    inverse, forward = full("inverse"), full("forward")
    one_pass, five_passes = stages(inverse, **clip), stages(inverse, **clip, passes=DEFAULT_PASSES)
    still, moving = stages(forward, **clip), stages(forward, **clip, light_frames=args.frames)
    print(f"TFLOP of {args.frames} frames {args.size[0]}×{args.size[1]}, {args.steps} steps\n")
    print("| | stage | calls | frames a call | TFLOP a call | TFLOP |\n|---|---|---|---|---|---|")
    for case, case_stages in {
        "inverse, one pass": one_pass,
        "inverse, five passes": five_passes,
        "forward, guided, still light": still,
        "forward, guided, moving light": moving,
    }.items():
        for stage in case_stages:
            tflop = operations(stage)
            print(
                f"| {case} | {stage.name} | {stage.count} | {stage.frames} | {tflop:.3f} | {tflop * stage.count:.1f} |"
            )
            case = ""
        print(f"| | **all** | | | | **{total(case_stages):.1f}** |")

    def unguided_step(**options) -> float:
        return operations(find(stages(forward, **clip, guidance=1.0, **options), "denoise"))

    one_step, still_step, moving_step = (operations(find(case, "denoise")) for case in (one_pass, still, moving))
    still_keys, moving_keys = (keys_and_values(forward, find(case, "denoise")) for case in (still, moving))
    rows = [
        ("a step: attention over the one token of a domain is a projection",
         count_two_tokens(find(one_pass, "denoise")), one_step),
        ("a guided step, still light: no environment attention in the unconditional half",
         2 * unguided_step(), still_step),
        ("the same, moving light", 2 * unguided_step(light_frames=args.frames), moving_step),
        ("a still light's tokens for one frame", total(moving, "environment"), total(still, "environment")),
        ("a still light's maps encoded for one frame, beside the G-buffers",
         total(moving, "encode"), total(still, "encode")),
        ("a still light's keys and values for one frame, a guided step", moving_step, still_step),
        ("RGB encoded once for five passes", 5 * total(one_pass, "encode"), total(five_passes, "encode")),
        ("not done: keys and values of a still light kept over the steps, a guided step",
         still_step, still_step - still_keys),
        ("not done: the same, moving light", moving_step, moving_step - moving_keys),
    ]  # fmt: skip
    print("\n| saving | TFLOP without | with | saved |\n|---|---|---|---|")
    for name, without, with_ in rows:
        print(f"| {name} | {without:.2f} | {with_:.2f} | {100 * (1 - with_ / without):.2f} % |")


def total(stages: list[StageCall], name: str | None = None) -> float:
    """Return the TFLOP of all calls of a stage, or of all stages."""
    return sum(operations(stage) * stage.count for stage in stages if name in (None, stage.name))


def operations(stage: StageCall) -> float:
    """Return the TFLOP of one call."""
    # A function compiled with its own XLA options cannot be traced inside another, so unwrap it.
    return flops.count(stage.fn.__wrapped__, *stage.arguments) / 1e12


def find(stages: list[StageCall], name: str) -> StageCall:
    return next(stage for stage in stages if stage.name == name)


def count_two_tokens(step: StageCall) -> float:
    """Return the TFLOP of a step with two context tokens, the fewest that need attention."""
    params, conditions, context, *rest = step.arguments
    b, f, n, e = context.shape
    context = jax.ShapeDtypeStruct((b, f, 2 * n, e), context.dtype)
    return operations(dataclasses.replace(step, arguments=(params, conditions, context, *rest)))


def keys_and_values(config: RendererConfig, step: StageCall) -> float:
    """Return the TFLOP of a step's key and value projections of the environment tokens."""
    params, _, context, *_ = step.arguments
    tflop, last = 0, len(context) - 1
    for name, leaf in flatten(params).items():
        if match := re.fullmatch(
            r"(\w+)\.(?:(\d+)\.)?attentions.*\.transformer_blocks\.\d+\.attn2\.to_[kv]\.kernel", name
        ):
            path, index = match[1], int(match[2] or 0)
            level = {"down_blocks": index, "mid_block": last, "up_blocks": last - index}[path]
            tflop += 2 * math.prod(context[level].shape[:3]) * leaf.size / 1e12
    return tflop


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(args) -> None:
    """Compile the stages for H100s that need not be present, and print XLA's memory plan."""
    group = find_group(args.devices)
    # The worst case: all frames in one window, a moving light, and guidance. One condition needs as much as five.
    clip = {"num_frames": args.frames, "frames": args.frames, "size": args.size, "num_steps": 1, "guidance": 1.2}
    clip |= {"light_frames": args.frames, "drop": CONDITIONS[1:], "group": group}
    print(
        f"GiB on each of {args.devices}: {args.frames} frames {args.size[0]}×{args.size[1]} in {args.dtype}, guided, "
        "sampled in one window\n"
    )
    print(
        "| | stage | all networks | arguments | working memory | results | total | received |\n|---" + "|---" * 7 + "|"
    )
    for kind in args.kinds:
        params_size = sum(map(size_of, jax.tree.leaves(abstract(full(kind), args.dtype).params)))
        for stage in stages(full(kind), args.dtype, **clip):
            if stage.name not in args.stages:
                continue
            began = time.monotonic()
            compiled = compile_stage(stage, group)
            plan = compiled.memory_analysis()
            arguments_size = sum(map(size_of, jax.tree.leaves(stage.arguments[1:])))
            sizes = [params_size, arguments_size, plan.temp_size_in_bytes, plan.output_size_in_bytes]
            cells = " | ".join(f"{n / GIB:.2f}" for n in sizes)
            print(
                f"| {kind} | {stage.name} of {stage.frames} frames | {cells} | **{sum(sizes) / GIB:.2f}** "
                f"| {received_bytes(compiled.as_text()) / GIB:.2f} |",
                flush=True,
            )
            print(f"compiled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def find_group(count: int) -> DeviceGroup:
    """Return H100s that need not be present."""
    return DeviceGroup(tuple(find_devices("h100", count)))


def compile_stage(stage: StageCall, group: DeviceGroup) -> jax.stages.Compiled:
    """Compile a call of a stage ahead of time."""
    sharding = group.replicated or jax.sharding.SingleDeviceSharding(group.devices[0])

    def place(x) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    traced = stage.fn.trace(*jax.tree.map(place, stage.arguments), split=stage.split)
    platform = group.devices[0].platform
    return traced.lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).compile()


def received_bytes(program: str) -> int:
    """Return the bytes that a device receives in a compiled program: the results of its collectives."""
    total = 0
    for types in re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", program):
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            size = math.prod(int(side) for side in shape.split(",") if side)
            total += size * jnp.dtype(DTYPE_NAMES.get(kind, "uint8")).itemsize
    return total


def size_of(x) -> int:
    return x.size * np.dtype(x.dtype).itemsize


# --- time ------------------------------------------------------------------------------------------------------------


def roofline(args) -> None:
    """Compile stages for an H100, and print their kernels by kind and the time they take at least on a GPU."""
    group = DeviceGroup(tuple(jax.devices()[:1])) if args.here else find_group(1)
    args.gpu = args.gpu or (model.named(group.devices[0].device_kind) if args.here else "H200")
    gpu, config = model.GPUS[args.gpu], {"full": full, "tiny": tiny}[args.model]
    clip = {"num_frames": args.frames, "frames": args.frames, "size": args.size, "num_steps": args.steps}
    clips = {
        "inverse, one pass": stages(config("inverse"), args.dtype, **clip, group=group),
        "forward, guided, still light": stages(config("forward"), args.dtype, **clip, guidance=1.2, group=group),
    }
    inverse, forward = clips.values()
    calls = {stage.name: stage for stage in (*inverse, *forward)} | {stage.name: stage for stage in inverse}
    calls |= {"inverse": find(inverse, "denoise"), "forward": find(forward, "denoise")}
    print(f"{args.frames} frames {args.size[0]}×{args.size[1]}, {args.dtype}, on one {args.gpu} of {gpu}\n")
    seconds = {}
    for name in args.stages or ROOFLINES[: -1 if args.here or args.model == "tiny" else None]:
        began = time.monotonic()
        if name == "training":
            size = f"data.size=[{args.size[0]},{args.size[1]}]"
            overrides = ["mesh.fsdp=1", "data.batch=1", f"data.frames={args.frames}", size, f"dtype={args.dtype}"]
            compiled = compile_ahead(read_config("configs/inverse.yaml", overrides), "h100")
            title = "training step of configs/inverse.yaml, one row of cached latents"
        else:
            compiled = compile_stage(calls[name], group)
            title = f"{name}: {calls[name].frames} frames"
        title += f", compiled in {time.monotonic() - began:.0f} s"
        kernels = model.Program(compiled.as_text()).kernels()
        print(model.table(title, kernels, gpu, args.dtype), flush=True)
        seconds[name] = sum(gpu.seconds(kernel, args.dtype) for kernel in kernels)
    for (title, clip_stages), step in zip(clips.items(), ("inverse", "forward"), strict=True):
        names = [step if stage.name == "denoise" else stage.name for stage in clip_stages]
        if set(names) <= set(seconds):
            # Calls of other shapes take proportional time.
            parts = [
                (name, seconds[name] / calls[name].frames * stage.frames * stage.count)
                for name, stage in zip(names, clip_stages, strict=True)
            ]
            detail = ", ".join(f"{name} {part:.2f}" for name, part in parts)
            print(f"{title}, {args.steps} steps: {sum(part for _, part in parts):.2f} s ({detail})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("arithmetic", "memory", "roofline"):
        command = commands.add_parser(name)
        command.add_argument("--frames", type=int, default=24, help="frames of the clip (24)")
        command.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="(512 512)")
        if name != "memory":
            command.add_argument("--steps", type=int, default=20, help="sampling steps (20)")
        if name != "arithmetic":
            command.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="compute dtype (bfloat16)")
        if name == "roofline":
            command.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(ROOFLINES)} (all)")
            command.add_argument("--gpu", choices=model.GPUS, default="H200", help="whose data-sheet figures (H200)")
            command.add_argument("--here", action="store_true", help="compile for this machine's device; no training")
            command.add_argument("--model", choices=("full", "tiny"), default="full", help="networks (full)")
        if name == "memory":
            command.add_argument("--devices", type=int, default=1, help="GPUs that share the clip (1)")
            command.add_argument("--kinds", nargs="+", choices=RENDERERS, default=list(RENDERERS), help="(both)")
            command.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="(all)")
    args = parser.parse_args()
    if args.command == "roofline" and (unknown := set(args.stages) - set(ROOFLINES)):
        parser.error(f"STAGE: expected {', '.join(ROOFLINES)}, got {', '.join(sorted(unknown))}")
    if args.command == "roofline" and "training" in args.stages and (args.here or args.model == "tiny"):
        parser.error("training: compiled for an H100 and full networks only; leave out --here and --model")
    {"arithmetic": arithmetic, "memory": memory, "roofline": roofline}[args.command](args)


if __name__ == "__main__":
    main()

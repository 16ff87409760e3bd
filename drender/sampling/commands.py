"""The commands `relight`, `inverse`, `forward` and `light`: options to jobs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drender import assets, cli
from drender.checkpoints.cache import resolve
from drender.config import RendererConfig, Sampling
from drender.errors import InputError
from drender.fields import from_dict
from drender.lighting.camera import camera_rotations, read_poses
from drender.media.encodings import ImageFormat, InputEncoding
from drender.media.resize import ResizeConfig
from drender.renderers.forward import ForwardRenderer, used_conditions
from drender.renderers.inverse import InverseRenderer, chosen_passes
from drender.sampling.execute import Load, execute
from drender.sampling.inputs import ChunkConfig
from drender.sampling.jobs import ForwardJob, InverseJob, Job, RelightJob, RunConfig
from drender.sampling.light import estimate_lights
from drender.sampling.lights import OWN_LIGHT, Lights
from drender.sampling.options import (
    BufferEncodingOptions,
    EncodingOptions,
    EstimateOptions,
    ForwardOptions,
    InverseOptions,
    LightOptions,
    RelightOptions,
    add_options,
    select,
)

COMMANDS = {
    "relight": RelightOptions,
    "inverse": InverseOptions,
    "forward": ForwardOptions,
    "light": EstimateOptions,
}
# Options that change where and how fast a run works, but not its results.
NOT_RECORDED = {"command", "run", "output", "devices", "process", "overwrite", "video", "quality", "html"}


def add_commands(add: Callable[..., cli.Parser]) -> None:
    """Add the commands to a parser whose `add_commands` returned `add`; `args.run(args)` runs the chosen one."""
    for name, options in COMMANDS.items():
        command = add(name, help=options.__doc__.rstrip("."))
        add_options(command, options)
        command.set_defaults(run=run)


def run(args: Any) -> None:
    """Run the chosen command."""
    options = COMMANDS[args.command](**select(COMMANDS[args.command], args))
    if args.command == "light":
        estimate_lights(options, input_encoding(options), cameras(options))
        return
    check_quality(args.quality)
    if options.devices is not None and options.devices < 1:
        raise InputError(f"--devices {options.devices}: must be 1 or more")
    job, load = build_job(args.command, options)
    execute(job, load, jax.local_devices()[: options.devices], tuple(options.process))


def build_job(command: str, options: Any) -> tuple[Job, Load]:
    """Return a command's job and the function that loads its renderers on some devices.

    Raises:
      InputError: an option is invalid, which is found before any weights are read.
    """
    options, inverse_config, forward_config = complete_options(command, options)
    run_config = build_run_config(options)
    dtype = options.dtype
    encoding = input_encoding(options)
    if command == "inverse":
        job = InverseJob(run_config, chosen_passes(inverse_config, options.passes), encoding)
        return job, lambda devices: InverseRenderer.load(options.checkpoint, dtype, devices, options.lora_scale)
    conditions = used_conditions(forward_config, options.drop)
    if command == "forward":
        job = ForwardJob(
            run_config, build_lights(options), conditions, options.drop, options.fixed_frame, encoding, cameras(options)
        )
        return job, lambda devices: ForwardRenderer.load(options.checkpoint, dtype, devices, options.lora_scale)
    passes = chosen_passes(inverse_config, options.passes)
    if missing := [name for name in conditions if name not in passes]:
        raise InputError(f"--passes lacks {', '.join(missing)} for the forward renderer; add it, or name it in --drop")
    job = RelightJob(run_config, passes, build_lights(options), conditions, options.drop, encoding)
    return job, lambda devices: (
        InverseRenderer.load(options.inverse, dtype, devices),
        ForwardRenderer.load(options.forward, dtype, devices, options.lora_scale),
    )


def complete_options(command: str, options: Any) -> tuple[Any, RendererConfig | None, RendererConfig | None]:
    """Return the options with the models' defaults, and the configurations of the inverse and forward renderer."""
    kinds = ("inverse", "forward") if command == "relight" else (command,)
    configs = dict.fromkeys(("inverse", "forward"))
    changes = {
        "input": options.input or str(assets.GBUFFERS if command == "forward" else assets.CLIPS),
        "output": options.output or str(Path("outputs") / command),
    }
    for kind, renderer in (("inverse", InverseRenderer), ("forward", ForwardRenderer)):
        if kind in kinds:
            option = kind if command == "relight" else "checkpoint"
            changes[option] = str(resolve(getattr(options, option) or assets.checkpoint(kind)))
            configs[kind] = renderer.load_config(changes[option])
    model = configs[kinds[0]]
    frames = model.frames if options.frames is None else options.frames
    changes["frames"] = frames
    changes["overlap"] = min(6, frames // 2) if options.overlap is None else options.overlap
    if command != "forward":  # G-buffers have a size of their own
        changes["size"] = options.size or model.size
    return dataclasses.replace(options, **changes), *configs.values()


def build_run_config(options: Any) -> RunConfig:
    """Return the configuration of a run from the options that all commands share."""
    names = [name for name in Sampling.__dataclass_fields__ if getattr(options, name) is not None]
    sampling = {name: getattr(options, name) for name in names}
    from_dict(Sampling, sampling, "options")  # raises InputError before anything is loaded
    values = dataclasses.asdict(options)
    paths = [values.get(name) for name in ("checkpoint", "inverse", "forward", "poses")]
    paths += [word for word in environments(values.get("environment", ())) if word != OWN_LIGHT]
    return RunConfig(
        Path(options.input), Path(options.output),
        settings={name: value for name, value in sorted(values.items()) if name not in NOT_RECORDED},
        dependencies=tuple(Path(path) for path in paths if path is not None),
        chunks=ChunkConfig(options.frames, options.overlap, options.chunks),
        resize=ResizeConfig(options.fit, multiples_of_64("--size", options.size), options.output_size),
        sampling=sampling, format=image_format(options), video=options.video, quality=options.quality,
        overwrite=options.overwrite, html=options.html,
    )  # fmt: skip


def build_lights(options: LightOptions) -> Lights:
    arguments = select(LightOptions, options)
    del arguments["environment"], arguments["environment_size"]
    arguments["poses"] = read_poses(options.poses, relative=True) if options.poses else None
    size = multiples_of_64("--environment-size", options.environment_size)
    return Lights(environments(options.environment), size=size, **arguments)


def environments(words: Sequence[str]) -> list[str]:
    """Return the paths of environments; OWN_LIGHT stays as it is, even where a file has that name."""
    return [word if word == OWN_LIGHT else assets.environment(word) for word in words]


def input_encoding(options: EncodingOptions) -> InputEncoding:
    """Return the encoding of input files that do not state theirs."""
    if isinstance(options, BufferEncodingOptions):
        return InputEncoding(
            options.input_transfer, options.input_normals, options.input_depth, tuple(options.input_layers)
        )
    return InputEncoding(options.input_transfer, layers=tuple(options.input_layers))


def cameras(options: BufferEncodingOptions) -> np.ndarray | None:
    """Return the rotations of the cameras that normals in world space need, or None."""
    if options.input_normals != "world":
        return None
    if options.poses is None:
        raise InputError("--input-normals world: needs the poses of the cameras; give --poses, or camera-space normals")
    poses = read_poses(options.poses)
    return camera_rotations(len(poses), poses=poses)


def image_format(options: Any) -> ImageFormat:
    if options.format == "exr" and options.bits is not None:
        raise InputError(f"--bits {options.bits} is for PNG, and EXR is half float; leave out --bits or --format")
    normals = getattr(options, "normals", "opengl")
    return ImageFormat(options.format, options.bits or 8, options.transfer, normals)


def multiples_of_64(option: str, size: tuple[int, int] | list[int] | None) -> tuple[int, int] | None:
    """Return the size with its sides rounded up, and print a line if that changes it."""
    if size is None or min(size) < 1:
        return size and tuple(size)
    rounded = tuple(-(-side // 64) * 64 for side in size)
    if rounded != tuple(size):
        print(f"{option} {size[0]} {size[1]}: rounded up to {rounded[0]} {rounded[1]}, multiples of 64")
    return rounded


def check_quality(quality: float) -> None:
    if not 0 <= quality <= 10:
        raise InputError(f"--quality {quality:g}: must be from 0 to 10")

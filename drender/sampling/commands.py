"""The commands `relight`, `inverse`, `forward` and `light`: options to jobs."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drender import assets, cli
from drender.checkpoints.cache import resolve
from drender.config import RendererConfig, Sampling
from drender.errors import InputError, first_line
from drender.fields import from_dict
from drender.lighting.camera import camera_rotations, read_poses
from drender.media.encodings import ImageFormat, InputEncoding
from drender.media.images import IMAGE_SUFFIXES
from drender.media.resize import ResizeConfig
from drender.renderers.forward import ForwardRenderer, used_conditions
from drender.renderers.inverse import InverseRenderer, chosen_passes
from drender.sampling.base import Job
from drender.sampling.execute import Load, execute
from drender.sampling.inputs import ChunkConfig
from drender.sampling.jobs import ForwardJob, InverseJob, RelightJob
from drender.sampling.light import LightJob
from drender.sampling.lights import ESTIMATED_FROM, OWN_LIGHT, Lights
from drender.sampling.options import (
    BufferEncodingOptions,
    EncodingOptions,
    EstimateOptions,
    ForwardOptions,
    InverseOptions,
    LightOptions,
    RelightOptions,
    SamplerOptions,
    add_options,
    option_name,
    select,
)
from drender.sampling.outputs import RunConfig

COMMANDS = {"relight": RelightOptions, "inverse": InverseOptions, "forward": ForwardOptions, "light": EstimateOptions}
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
        devices = local_devices(1)
        execute(*build_light_job(options), devices)
    else:
        devices = local_devices(options.devices)
        execute(*build_job(args.command, options), devices, options.process)


def local_devices(count: int | None) -> list[jax.Device]:
    """Return the first devices of this process, by default all; raise InputError if it has none or fewer."""
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter if a plugin for GPUs is missing
        problem = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: no such devices ({first_line(error)})"
        raise InputError(f"{problem}; unset it, or install JAX for them") from error
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"--devices {count}: must be 1 to {len(devices)}, the devices of this process")
    return devices[:count]


def build_job(command: str, options: Any) -> tuple[Job, Load]:
    """Return the job of `inverse`, `forward` or `relight`, and the function that loads its renderers on some devices.

    InputError if an option is invalid, which is found before any weights are read.
    """
    options, inverse_config, forward_config = complete_options(command, options)
    run_config = build_run_config(options)
    dtype, encoding = options.dtype, input_encoding(options)
    encoding.check_labels(("rgb", *(() if command != "forward" else (*forward_config.conditions, *ESTIMATED_FROM))))
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


def build_light_job(options: EstimateOptions) -> tuple[LightJob, Load]:
    """Return the job of `light`, and the function that loads its renderer; InputError as from `build_job`."""
    output = Path(options.output or Path("outputs") / "light")
    if output.suffix.lower() in (".hdr", *IMAGE_SUFFIXES):
        raise InputError(f"--output {output}: maps are written as OpenEXR; give a name that ends in .exr")
    _check_options_of_input(options)
    if options.gbuffers is None:
        options, _, _ = complete_options("light", options)
        labels, load = ("rgb",), lambda devices: InverseRenderer.load(options.checkpoint, options.dtype, devices)
    elif options.input is not None:
        raise InputError("--input and --gbuffers exclude each other; leave one out")
    else:
        options = dataclasses.replace(options, frames=sys.maxsize if options.frames is None else options.frames)
        labels, load = ("rgb", *ESTIMATED_FROM), lambda devices: None
    poses = read_poses(options.poses, relative=True) if options.poses else None
    file = output if output.suffix.lower() == ".exr" else None
    run_config = RunConfig(
        Path(options.gbuffers or options.input), output,
        settings={name: value for name, value in vars(options).items() if name not in ("output", "overwrite")},
        dependencies=tuple(Path(path) for path in (options.checkpoint, options.poses) if path is not None),
        chunks=ChunkConfig(options.frames, overlap=0, mode="first"), resize=ResizeConfig(size=options.size),
        sampling=sampling_options(options), overwrite=options.overwrite,
    )  # fmt: skip
    encoding = input_encoding(options)
    encoding.check_labels(labels)
    lights = Lights([OWN_LIGHT], poses=poses, fov=options.fov)
    return LightJob(run_config, lights, options.gbuffers is not None, file, encoding, cameras(options)), load


def _check_options_of_input(options: EstimateOptions) -> None:
    """Raise InputError for an option that has no effect on the input that is given."""
    if options.gbuffers is None:
        given, unused = "--input", {"input_normals", "input_depth"}
    else:
        given, unused = "--gbuffers", {"checkpoint", "size", "dtype"} | vars(SamplerOptions()).keys()
    for field in dataclasses.fields(options):
        if field.name in unused and getattr(options, field.name) != field.default:
            raise InputError(f"{option_name(field)}: has no effect on {given}; leave it out")


def complete_options(command: str, options: Any) -> tuple[Any, RendererConfig | None, RendererConfig | None]:
    """Return the options with the models' defaults, and the configurations of the inverse and forward renderer."""
    kinds = {"relight": ("inverse", "forward"), "light": ("inverse",)}.get(command, (command,))
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
    frames = changes["frames"] = model.frames if options.frames is None else options.frames
    if command != "light":
        changes["overlap"] = min(6, frames // 2) if options.overlap is None else options.overlap
    if command != "forward":  # G-buffers have a size of their own
        changes["size"] = options.size or model.size
    return dataclasses.replace(options, **changes), *configs.values()


def sampling_options(options: SamplerOptions, **windows: int) -> dict[str, Any]:
    """Return the sampling options that are given, and those of windows; raise InputError for one out of range."""
    values = {name: value for name, value in select(SamplerOptions, options).items() if value is not None} | windows
    from_dict(Sampling, values, "options")
    return values


def build_run_config(options: Any) -> RunConfig:
    """Return the configuration of a run from the options of `inverse`, `forward` and `relight`."""
    values = dataclasses.asdict(options)
    paths = [values.get(name) for name in ("checkpoint", "inverse", "forward", "poses")]
    paths += [word for word in environments(values.get("environment", ())) if word != OWN_LIGHT]
    sampling = sampling_options(options, frames=options.frames, overlap=options.overlap)
    if options.format == "exr" and options.bits is not None:
        raise InputError(f"--bits {options.bits} is for PNG, and EXR is half float; leave out --bits or --format")
    image_format = ImageFormat(options.format, options.bits or 8, options.transfer, values.get("normals", "opengl"))
    return RunConfig(
        Path(options.input), Path(options.output),
        settings={name: value for name, value in sorted(values.items()) if name not in NOT_RECORDED},
        dependencies=tuple(Path(path) for path in paths if path is not None),
        chunks=ChunkConfig(options.frames, options.overlap, options.chunks),
        resize=ResizeConfig(options.fit, multiples_of_64("--size", options.size), options.output_size),
        sampling=sampling, format=image_format, video=options.video, quality=options.quality,
        overwrite=options.overwrite, html=options.html,
    )  # fmt: skip


def build_lights(options: LightOptions) -> Lights:
    arguments = select(LightOptions, options)
    arguments["sources"] = environments(arguments.pop("environment"))
    arguments["size"] = multiples_of_64("--environment-size", arguments.pop("environment_size"))
    arguments["poses"] = read_poses(options.poses, relative=True) if options.poses else None
    return Lights(**arguments)


def environments(words: Sequence[str]) -> list[str]:
    """Return the paths of environments; OWN_LIGHT stays as it is, even where a file has that name."""
    return [word if word == OWN_LIGHT else assets.environment(word) for word in words]


def input_encoding(options: EncodingOptions) -> InputEncoding:
    """Return the encoding of input files that do not state theirs."""
    given = {name: value for name, value in vars(options).items() if name.startswith("input_")}
    return InputEncoding(**{name.removeprefix("input_"): value for name, value in given.items()})


def cameras(options: BufferEncodingOptions) -> np.ndarray | None:
    """Return the rotations of the cameras that normals in world space need, or None."""
    if options.input_normals != "world":
        return None
    if options.poses is None:
        raise InputError("--input-normals world: needs the poses of the cameras; give --poses, or camera-space normals")
    poses = read_poses(options.poses)
    return camera_rotations(len(poses), poses=poses)


def multiples_of_64(option: str, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size with its sides rounded up, and print a line if that changes it."""
    if size is None or min(size) < 1:
        return size
    rounded = tuple(-(-side // 64) * 64 for side in size)
    if rounded != size:
        print(f"{option} {size[0]} {size[1]}: rounded up to {rounded[0]} {rounded[1]}, multiples of 64")
    return rounded

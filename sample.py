"""Sampling: `inverse`, `forward` and `relight`; and `edit` and `insert`, which change G-buffers between the first two.

`python sample.py relight --help` lists the options of a command. Without options, a command runs the small models that
come with the package on the clip that does.
"""

import sys
from pathlib import Path

import jax

from drender import assets, cli
from drender.config import RendererConfig, Sampling, from_dict
from drender.editing.edit_job import EditJob, Step
from drender.editing.insert_job import InsertJob
from drender.editing.insertion import FileObject, RenderedObject
from drender.errors import InputError
from drender.lighting.camera import read_poses
from drender.media.encodings import ImageFormat, InputEncoding
from drender.media.resize import ResizeConfig
from drender.renderers.forward import ForwardRenderer, used_conditions
from drender.renderers.inverse import InverseRenderer, chosen_passes
from drender.sampling import execute, jobs, options
from drender.sampling.inputs import ChunkConfig
from drender.sampling.lights import Lights

# Options that change where and how fast a run works, not what comes out.
NOT_RECORDED = {"command", "output", "devices", "process", "overwrite", "video", "quality", "html"}


def main() -> None:
    args = options.parser(__doc__).parse_args()
    if not 0 <= args.quality <= 10:
        raise InputError(f"--quality {args.quality:g}: must be from 0 to 10")
    rework(args) if args.command in ("edit", "insert") else render(args)


def render(args) -> None:
    """Runs a command of the renderers."""
    inverse_config, forward_config = complete(args)
    sampling = {name: getattr(args, name) for name in Sampling.__dataclass_fields__ if getattr(args, name) is not None}
    from_dict(Sampling, sampling, "options")  # a bad value is told before anything is loaded
    shared = {
        "input": Path(args.input),
        "output": Path(args.output),
        "cut": ChunkConfig(args.frames, args.overlap, args.chunks),
        "fit": ResizeConfig(args.fit, multiples_of_64("--size", args.size), args.output_size),
        "sampling": sampling,
        "settings": {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED},
        "format": image_format(args),
        "video": args.video,
        "quality": args.quality,
        "overwrite": args.overwrite,
        "html": args.html,
    }
    if args.devices is not None and args.devices < 1:
        raise InputError(f"--devices {args.devices}: must be 1 or more")
    if args.command == "inverse":
        passes = chosen_passes(inverse_config, args.passes)
        run = jobs.InverseJob(**shared, passes=passes)
        load = lambda team: InverseRenderer.load(args.checkpoint, args.dtype, team, args.lora_scale)
    elif args.command == "forward":
        used = used_conditions(forward_config, args.drop)
        run = jobs.ForwardJob(
            **shared, lights=lights(args), conditions=used, drop=args.drop, fixed_frame=args.fixed_frame,
            assumed=InputEncoding(args.input_transfer, args.input_normals),
        )  # fmt: skip
        load = lambda team: ForwardRenderer.load(args.checkpoint, args.dtype, team, args.lora_scale)
    else:
        passes = chosen_passes(inverse_config, args.passes)
        used = used_conditions(forward_config, args.drop)
        if lacks := [name for name in used if name not in passes]:
            raise InputError(
                f"--passes lacks {', '.join(lacks)} for the forward renderer; add it, or name it in --drop"
            )
        run = jobs.RelightJob(**shared, lights=lights(args), passes=passes, conditions=used, drop=args.drop)
        load = lambda team: (
            InverseRenderer.load(args.inverse, args.dtype, team),
            ForwardRenderer.load(args.forward, args.dtype, team, args.lora_scale),
        )
    execute.execute(run, load, jax.local_devices()[: args.devices], tuple(args.process))


def rework(args) -> None:
    """Runs a command that changes G-buffers. It needs no models, and takes no accelerator from those that do."""
    jax.config.update("jax_platforms", "cpu")
    args.input = args.input or str(assets.GBUFFERS)
    args.output = args.output or str(Path("outputs") / args.command)
    settings = {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED}
    shared = {
        "input": Path(args.input),
        "output": Path(args.output),
        "cut": ChunkConfig(sys.maxsize, 6 if args.overlap is None else args.overlap, "all"),  # chunks as they are
        "fit": ResizeConfig(),
        "sampling": {},
        "settings": {"command": args.command, **settings},
        "bits": args.bits,
        "video": args.video,
        "quality": args.quality,
        "overwrite": args.overwrite,
        "html": args.html,
    }
    if args.command == "edit":
        run = EditJob(**shared, steps=[Step.read(**edit) for edit in args.edits or [{}]])
    else:
        material = {
            label: " ".join(getattr(args, label)) for label in options.MATERIAL if getattr(args, label) is not None
        }
        place = args.depth and tuple(args.depth)
        run = InsertJob(**shared, inserted=inserted(args), place=place, material=material, guide=args.guide)
    execute.execute(run, lambda team: (), jax.local_devices()[:1])


def complete(args) -> tuple[RendererConfig | None, RendererConfig | None]:
    """Fills in what is not given, and returns the configurations of the renderers that are used."""
    kinds = ("inverse", "forward") if args.command == "relight" else (args.command,)
    configs = dict.fromkeys(("inverse", "forward"))
    for kind, renderer in (("inverse", InverseRenderer), ("forward", ForwardRenderer)):
        if kind in kinds:
            option = kind if args.command == "relight" else "checkpoint"
            setattr(args, option, getattr(args, option) or str(assets.checkpoint(kind)))
            configs[kind] = renderer.load_config(getattr(args, option))
    first = configs[kinds[0]]
    args.input = args.input or str(assets.GBUFFERS if args.command == "forward" else assets.CLIPS)
    args.output = args.output or str(Path("outputs") / args.command)
    args.frames = first.frames if args.frames is None else args.frames
    args.overlap = min(6, args.frames // 2) if args.overlap is None else args.overlap
    if args.command != "forward":  # G-buffers have a size already
        args.size = args.size or first.size
    return tuple(configs.values())


def inserted(args) -> FileObject | RenderedObject:
    placing = {name: getattr(args, name) for name in ("position", "height", "turn", "fov")}
    placing = {name: value for name, value in placing.items() if value is not None}
    if Path(args.object).is_dir():
        if placing:
            raise InputError(f"--{next(iter(placing))} is for meshes and shapes; --object {args.object} is a folder")
        return FileObject(args.object, args.object_frame)
    if args.object_frame is not None:
        raise InputError(f"--object-frame is for folders of G-buffers; --object {args.object} is none")
    return RenderedObject(args.object, **placing)


def lights(args) -> Lights:
    names = (
        "rotation", "flip", "yaw", "pitch", "roll", "strength", "exposure", "blur",
        "rotate_light", "elevation", "elevation_sign", "projection",
    )  # fmt: skip
    return Lights(
        [assets.environment(word) for word in args.environment],
        poses=read_poses(args.poses, relative=True) if args.poses else None,
        size=multiples_of_64("--environment-size", args.environment_size),
        **{name: getattr(args, name) for name in names},
    )


def image_format(args) -> ImageFormat:
    if args.format == "exr" and args.bits is not None:
        raise InputError(f"--bits {args.bits} is for PNG, and EXR is half float; leave one of --bits and --format out")
    return ImageFormat(args.format, args.bits or 8, args.transfer, getattr(args, "normals", "opengl"))


def multiples_of_64(option: str, size: list[int] | None) -> tuple[int, int] | None:
    """The size with its sides rounded up, which is said."""
    if size is None or min(size) < 1:
        return size and tuple(size)
    covered = tuple(-(-side // 64) * 64 for side in size)
    if covered != tuple(size):
        print(f"{option} {size[0]} {size[1]}: rounded up to {covered[0]} {covered[1]}, multiples of 64")
    return covered


if __name__ == "__main__":
    cli.run(main)

"""Sampling: `inverse`, `forward` and `relight`. `python sample.py relight --help` lists the options of the last.

Without options, a command runs the small models that come with the package on the clip that does.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax

from drender import builtin, cli, runs
from drender.config import DEFAULT_PASSES, RendererConfig, Sampling, from_dict
from drender.encodings import KINDS, NORMALS, TRANSFERS, Assumed, Format
from drender.environment import PROJECTIONS, read_poses
from drender.errors import InputError
from drender.fitting import MODES as FIT_MODES
from drender.fitting import OUTPUTS, Fit
from drender.renderers import ForwardRenderer, InverseRenderer, chosen_passes, used_conditions
from drender.stages import DTYPES
from drender.windows import MODES

# Options that change where and how fast a run works, not what comes out.
NOT_RECORDED = {"command", "output", "devices", "overwrite", "video", "quality"}


def main() -> None:
    args = parser().parse_args()
    inverse_config, forward_config = complete(args)
    sampling = {name: getattr(args, name) for name in Sampling.__dataclass_fields__ if getattr(args, name) is not None}
    from_dict(Sampling, sampling, "options")  # a bad value is told before anything is loaded
    shared = {
        "input": Path(args.input),
        "output": Path(args.output),
        "cut": runs.Cut(args.frames, args.overlap, args.chunks),
        "fit": Fit(args.fit, multiples_of_64("--size", args.size), args.output_size),
        "sampling": sampling,
        "settings": {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED},
        "format": image_format(args),
        "video": args.video,
        "quality": args.quality,
        "overwrite": args.overwrite,
    }
    if not 0 <= args.quality <= 10:
        raise InputError(f"--quality {args.quality:g}: must be from 0 to 10")
    if args.devices is not None and args.devices < 1:
        raise InputError(f"--devices {args.devices}: must be 1 or more")
    if args.command == "inverse":
        passes = chosen_passes(inverse_config, args.passes)
        run = runs.InverseRun(**shared, passes=passes)
        load = lambda device: InverseRenderer.load(args.checkpoint, args.dtype, device, args.lora_scale)
    elif args.command == "forward":
        used = used_conditions(forward_config, args.drop)
        run = runs.ForwardRun(
            **shared, lights=lights(args), conditions=used, drop=args.drop, fixed_frame=args.fixed_frame,
            assumed=Assumed(args.input_transfer, args.input_normals),
        )  # fmt: skip
        load = lambda device: ForwardRenderer.load(args.checkpoint, args.dtype, device, args.lora_scale)
    else:
        passes = chosen_passes(inverse_config, args.passes)
        used = used_conditions(forward_config, args.drop)
        if lacks := [name for name in used if name not in passes]:
            raise InputError(
                f"--passes lacks {', '.join(lacks)} for the forward renderer; add it, or name it in --drop"
            )
        run = runs.RelightRun(**shared, lights=lights(args), passes=passes, drop=args.drop)
        load = lambda device: (
            InverseRenderer.load(args.inverse, args.dtype, device),
            ForwardRenderer.load(args.forward, args.dtype, device, args.lora_scale),
        )
    runs.execute(run, load, jax.local_devices()[: args.devices])


def complete(args) -> tuple[RendererConfig | None, RendererConfig | None]:
    """Fills in what is not given, and returns the configurations of the renderers that are used."""
    kinds = ("inverse", "forward") if args.command == "relight" else (args.command,)
    configs = dict.fromkeys(("inverse", "forward"))
    for kind, renderer in (("inverse", InverseRenderer), ("forward", ForwardRenderer)):
        if kind in kinds:
            option = kind if args.command == "relight" else "checkpoint"
            setattr(args, option, getattr(args, option) or str(builtin.checkpoint(kind)))
            configs[kind] = renderer.load_config(getattr(args, option))
    first = configs[kinds[0]]
    args.input = args.input or str(builtin.GBUFFERS if args.command == "forward" else builtin.CLIPS)
    args.output = args.output or str(Path("outputs") / args.command)
    args.frames = first.frames if args.frames is None else args.frames
    args.overlap = min(6, args.frames // 2) if args.overlap is None else args.overlap
    if args.command != "forward":  # G-buffers have a size already
        args.size = args.size or first.size
    return tuple(configs.values())


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__)
    add = top.add_commands()
    inverse = add("inverse", help="RGB clips to G-buffers")
    forward = add("forward", help="G-buffers to RGB clips under another light")
    relight = add("relight", help="RGB clips to G-buffers to RGB clips under another light")
    for command in (inverse, forward):
        option(command, "--checkpoint", "FOLDER", "written by convert_weights.py (the built-in model)")
    option(relight, "--inverse", "FOLDER", "checkpoint of the inverse renderer (the built-in one)")
    option(relight, "--forward", "FOLDER", "checkpoint of the forward renderer (the built-in one)")
    clips = "image, video, folder of frames, or folder of such"
    for command, kind in ((inverse, clips), (forward, "folder of G-buffers, or of such folders"), (relight, clips)):
        files(command, kind)
    for command in (inverse, relight):
        command.add_argument(
            "--passes", nargs="+", metavar="NAME", default=DEFAULT_PASSES, help="G-buffers to estimate"
        )
    option(inverse, "--lora-scale", "X", "of factors trained on real footage, where there are any", float, default=1.0)
    for command in (forward, relight):
        light(command)
    forward.add_argument(
        "--input-transfer", choices=TRANSFERS,
        help="of colours in files that do not say (srgb; linear in .exr and .hdr); ours say",
    )  # fmt: skip
    forward.add_argument(
        "--input-normals", choices=NORMALS, default="opengl", help="axes of normals in files that do not say; ours say"
    )
    for command in (inverse, relight):
        command.add_argument("--normals", choices=NORMALS, default="opengl", help="their axes; directx: y down")
    forward.add_argument("--fixed-frame", type=int, metavar="I", help="repeat frame I of the clip for --frames frames")
    for command in (inverse, forward, relight):
        cutting(command, "their own" if command is forward else "the model's")
        sampler(command)
    return top


def option(command: cli.Parser, name: str, metavar: str, help: str, kind: type | Callable = cli.path, **how) -> None:
    """Adds an option of one value."""
    command.add_argument(name, metavar=metavar, help=help, type=kind, **how)


def files(command: cli.Parser, kind: str) -> None:
    option(command, "--input", "PATH", f"{kind} (the built-in clip)")
    option(command, "--output", "FOLDER", "for the results (outputs/ and the command's name)")
    command.add_argument("--overwrite", action="store_true", help="replace results made with other options")
    command.add_argument("--format", choices=KINDS, default="png", help="of the images; exr: half float")
    command.add_argument("--bits", type=int, choices=(8, 16), help="of the PNG files (8)")
    command.add_argument("--transfer", choices=TRANSFERS, help="of colours in the images (srgb; linear in EXR)")
    command.add_argument("--no-video", dest="video", action="store_false", help="write no mp4 and no contact sheet")
    option(command, "--quality", "Q", "of the mp4, 0 to 10; 7 is x264's CRF 18, a step is 3 CRF", float, default=7.0)
    option(command, "--devices", "N", "how many local devices share the clips (all)", int)
    command.add_argument("--dtype", choices=DTYPES, help="to compute in (float32 on a CPU, else bfloat16)")


def light(command: cli.Parser) -> None:
    command.add_argument(
        "--environment", nargs="+", type=cli.path, default=builtin.LIGHTS, metavar="HDR",
        help=f".hdr, .exr or LDR lat-long maps, or built-in ones: {', '.join(builtin.environments())}",
    )  # fmt: skip
    command.add_argument("--environment-size", type=int, nargs=2, metavar=("H", "W"), help="of its maps (the model's)")
    option(command, "--rotation", "DEGREES", "by which the map is rolled to the right", float, default=180.0)
    command.add_argument("--flip", action="store_true", help="mirror the map first")
    option(command, "--strength", "X", "factor on the light", float, default=1.0)
    command.add_argument("--rotate-light", action="store_true", help="turn the light once over the clip")
    option(command, "--elevation", "DEGREES", "of the fixed camera, signed as released", float, default=0.0)
    option(command, "--poses", "JSON", "transforms.json with a camera-to-world pose per frame, for a moving camera")
    command.add_argument("--projection", choices=PROJECTIONS, default="frame", help="how the map shows all directions")
    option(command, "--lora-scale", "X", "0.25 suits real footage, 0 synthetic objects", float, default=0.25)
    command.add_argument("--drop", nargs="+", default=(), metavar="NAME", help="conditions to leave out")


def cutting(command: cli.Parser, default_size: str) -> None:
    kept = "; G-buffers that lie in several chunks keep these" if default_size == "their own" else ""
    option(command, "--frames", "N", f"per chunk (the model's){kept}", int)
    option(command, "--overlap", "N", "frames that neighbouring chunks share (6, but at most half of --frames)", int)
    command.add_argument("--chunks", choices=MODES, default="all", help="which to sample")
    command.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help=f"to cover, or what else --fit says; sides are rounded up to multiples of 64 ({default_size})",
    )  # fmt: skip
    command.add_argument(
        "--fit", choices=FIT_MODES, default="cover",
        help="cover the size, be contained in it (padded, and cropped again), or be stretched to it",
    )  # fmt: skip
    command.add_argument(
        "--output-size", choices=OUTPUTS, default="model", help="size of the results: the model's, or the source's"
    )


def sampler(command: cli.Parser) -> None:
    """The fields of `Sampling`; what is not given is the renderer's to choose."""
    option(
        command,
        "--steps",
        "N",
        "calls of the network per pass (20; or 1, if trained so)",
        int,
        dest="num_steps",
    )
    command.add_argument(
        "--guidance", type=float, nargs=2, metavar=("FIRST", "LAST"), help="per frame (forward: 1.2 1.2)"
    )
    command.add_argument("--dynamic-guidance", action="store_true", help="let the guidance grow over the steps")
    option(command, "--fps", "X", "frame rate that the model is told (7)", float)
    option(command, "--motion-bucket-id", "X", "motion that the model is told (127)", float)
    option(command, "--noise-aug-strength", "X", "noise added to the conditions (0)", float)
    option(command, "--decode-chunk-size", "N", "frames that the VAE decodes together (8)", int)
    option(command, "--seed", "N", "of the initial noise (0)", int)
    command.add_argument(
        "--deterministic", action=argparse.BooleanOptionalAction, help="one step, for models trained so (what it was)"
    )


def image_format(args) -> Format:
    if args.format == "exr" and args.bits is not None:
        raise InputError(f"--bits {args.bits} is for PNG, and EXR is half float; leave one of --bits and --format out")
    return Format(args.format, args.bits or 8, args.transfer, getattr(args, "normals", "opengl"))


def lights(args) -> runs.Lights:
    poses = read_poses(args.poses, relative=True) if args.poses else None
    paths = [builtin.environment(word) for word in args.environment]
    return runs.Lights(
        paths, args.rotation, args.flip, args.strength, args.rotate_light, args.elevation, poses,
        args.projection, multiples_of_64("--environment-size", args.environment_size),
    )  # fmt: skip


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

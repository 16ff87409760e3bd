"""Sampling: `inverse`, `forward` and `relight`; and `edit` and `insert`, which change G-buffers between the first two.

`python sample.py relight --help` lists the options of a command. Without options, a command runs the small models that
come with the package on the clip that does.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from drender import builtin, cli, execution, runs
from drender.config import DEFAULT_PASSES, RendererConfig, Sampling, from_dict
from drender.diffusion import SAMPLERS
from drender.edit_run import EditRun, Step
from drender.environment import PROJECTIONS
from drender.errors import InputError
from drender.insert_run import InsertRun
from drender.insertion import FileObject, RenderedObject
from drender.lights import Lights
from drender.orientation import ELEVATION_SIGNS, read_poses
from drender.renderers import ForwardRenderer, InverseRenderer, chosen_passes, used_conditions
from drender.stages import DTYPES
from drender.windows import MODES

# Options that change where and how fast a run works, not what comes out.
NOT_RECORDED = {"command", "output", "devices", "overwrite", "video", "html"}
MATERIAL = ("basecolor", "roughness", "metallic")


def main() -> None:
    args = parser().parse_args()
    rework(args) if args.command in ("edit", "insert") else render(args)


def render(args) -> None:
    """Runs a command of the renderers."""
    inverse_config, forward_config = complete(args)
    sampling = {name: getattr(args, name) for name in Sampling.__dataclass_fields__ if getattr(args, name) is not None}
    from_dict(Sampling, sampling, "options")  # a bad value is told before anything is loaded
    shared = {
        "input": Path(args.input),
        "output": Path(args.output),
        "cut": runs.Cut(args.frames, args.overlap, args.chunks, multiples_of_64("--size", args.size)),
        "sampling": sampling,
        "settings": {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED},
        "bits": args.bits,
        "video": args.video,
        "overwrite": args.overwrite,
        "html": args.html,
    }
    if args.devices is not None and args.devices < 1:
        raise InputError(f"--devices {args.devices}: must be 1 or more")
    if args.command == "inverse":
        passes = chosen_passes(inverse_config, args.passes)
        run = runs.InverseRun(**shared, passes=passes)
        load = lambda device: InverseRenderer.load(args.checkpoint, args.dtype, device, args.lora_scale)
    elif args.command == "forward":
        used = used_conditions(forward_config, args.drop)
        run = runs.ForwardRun(
            **shared, lights=lights(args), conditions=used, drop=args.drop, fixed_frame=args.fixed_frame
        )
        load = lambda device: ForwardRenderer.load(args.checkpoint, args.dtype, device, args.lora_scale)
    else:
        passes = chosen_passes(inverse_config, args.passes)
        used = used_conditions(forward_config, args.drop)
        if lacks := [name for name in used if name not in passes]:
            raise InputError(
                f"--passes lacks {', '.join(lacks)} for the forward renderer; add it, or name it in --drop"
            )
        run = runs.RelightRun(**shared, lights=lights(args), passes=passes, conditions=used, drop=args.drop)
        load = lambda device: (
            InverseRenderer.load(args.inverse, args.dtype, device),
            ForwardRenderer.load(args.forward, args.dtype, device, args.lora_scale),
        )
    execution.execute(run, load, jax.local_devices()[: args.devices])


def rework(args) -> None:
    """Runs a command that changes G-buffers. It needs no models, and takes no accelerator from those that do."""
    jax.config.update("jax_platforms", "cpu")
    args.input = args.input or str(builtin.GBUFFERS)
    args.output = args.output or str(Path("outputs") / args.command)
    settings = {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED}
    shared = {
        "input": Path(args.input),
        "output": Path(args.output),
        "cut": runs.Cut(sys.maxsize, 6 if args.overlap is None else args.overlap, "all", None),  # chunks as they are
        "sampling": {},
        "settings": {"command": args.command, **settings},
        "bits": args.bits,
        "video": args.video,
        "overwrite": args.overwrite,
        "html": args.html,
    }
    if args.command == "edit":
        run = EditRun(**shared, steps=[Step.read(**edit) for edit in args.edits or [{}]])
    else:
        material = {label: " ".join(getattr(args, label)) for label in MATERIAL if getattr(args, label) is not None}
        place = args.depth and tuple(args.depth)
        run = InsertRun(**shared, inserted=inserted(args), place=place, material=material, guide=args.guide)
    execution.execute(run, lambda device: (), jax.local_devices()[:1])


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
        option(command, "--devices", "N", "how many local devices share the clips (all)", int)
        command.add_argument("--dtype", choices=DTYPES, help="to compute in (float32 on a CPU, else bfloat16)")
    for command in (inverse, relight):
        command.add_argument(
            "--passes", nargs="+", metavar="NAME", default=DEFAULT_PASSES, help="G-buffers to estimate"
        )
    edit = add("edit", help="G-buffers to G-buffers of other materials; several edits with --then between them")
    insert = add("insert", help="an object into G-buffers, by depth and mask")
    for command in (edit, insert):
        files(command, "folder of G-buffers, or of such folders", bits=None)
        option(command, "--overlap", "N", "frames that chunks share, where no record tells (6)", int)
    editing(edit)
    insertion(insert)
    option(inverse, "--lora-scale", "X", "of factors trained on real footage, where there are any", float, default=1.0)
    for command in (forward, relight):
        light(command)
    forward.add_argument("--fixed-frame", type=int, metavar="I", help="repeat frame I of the clip for --frames frames")
    for command in (inverse, forward, relight):
        cutting(command, "their own" if command is forward else "the model's")
        sampler(command)
    return top


def option(command: cli.Parser, name: str, metavar: str, help: str, kind: type | Callable = cli.path, **how) -> None:
    """Adds an option of one value."""
    command.add_argument(name, metavar=metavar, help=help, type=kind, **how)


def files(command: cli.Parser, kind: str, bits: int | None = 8) -> None:
    option(command, "--input", "PATH", f"{kind} (the built-in clip)")
    option(command, "--output", "FOLDER", "for the results (outputs/ and the command's name)")
    command.add_argument("--overwrite", action="store_true", help="replace results made with other options")
    kept = "" if bits else " (those of the input)"
    command.add_argument("--bits", type=int, choices=(8, 16), default=bits, help=f"of the PNG files{kept}")
    command.add_argument("--no-video", dest="video", action="store_false", help="write no mp4 and no contact sheet")
    command.add_argument("--html", action="store_true", help="write index.html, a page to look at the results")


def light(command: cli.Parser) -> None:
    command.add_argument(
        "--environment", nargs="+", type=cli.path, default=builtin.LIGHTS, metavar="HDR",
        help=".hdr, .exr or LDR lat-long maps, folders with a map for every frame, or built-in maps: "
        f"{', '.join(builtin.environments())}",
    )  # fmt: skip
    command.add_argument("--environment-size", type=int, nargs=2, metavar=("H", "W"), help="of its maps (the model's)")
    option(command, "--rotation", "DEGREES", "by which the map is rolled to the right", float, default=180.0)
    command.add_argument("--flip", action="store_true", help="mirror the map first")
    turns = ("yaw", "from ahead to the right"), ("pitch", "from ahead upward"), ("roll", "from above to the right")
    for turn, where in turns:
        option(command, f"--{turn}", "DEGREES", f"turns the light {where}", float, default=0.0)
    option(command, "--strength", "X", "factor on the light", float, default=1.0)
    option(command, "--exposure", "STOPS", "doublings of the light, or auto: to a usual mean", stops, default=0.0)
    option(command, "--blur", "DEGREES", "standard deviation of the spot that softens the light", float, default=0.0)
    command.add_argument("--rotate-light", action="store_true", help="turn the light once over the clip, as --yaw does")
    option(command, "--elevation", "DEGREES", "of the fixed camera", float, default=0.0)
    command.add_argument(
        "--elevation-sign", choices=ELEVATION_SIGNS, default="released",
        help="what a positive elevation does: up raises the camera, released lights it as if it were lowered",
    )  # fmt: skip
    option(command, "--poses", "JSON", "transforms.json with a camera-to-world pose per frame, for a moving camera")
    command.add_argument("--projection", choices=PROJECTIONS, default="frame", help="how the map shows all directions")
    option(command, "--lora-scale", "X", "0.25 suits real footage, 0 synthetic objects", float, default=0.25)
    command.add_argument("--drop", nargs="+", default=(), metavar="NAME", help="conditions to leave out")


def cutting(command: cli.Parser, default_size: str) -> None:
    kept = "; G-buffers that lie in several chunks keep these, unless blended" if default_size == "their own" else ""
    option(command, "--frames", "N", f"per window or chunk (the model's){kept}", int)
    option(command, "--overlap", "N", "frames that neighbours share (6, but at most half of --frames)", int)
    command.add_argument(
        "--chunks", choices=MODES, default="blend",
        help="one of all frames, blended from windows; or, as released, all, the first, all but an incomplete last",
    )  # fmt: skip
    command.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help=f"to cover; sides are rounded up to multiples of 64 ({default_size})",
    )  # fmt: skip


def sampler(command: cli.Parser) -> None:
    """The fields of `Sampling`; what is not given is the renderer's to choose."""
    option(command, "--steps", "N", "from noise to image (20; or 1, if trained so)", int, dest="num_steps")
    command.add_argument(
        "--sampler", choices=tuple(SAMPLERS), help="of the steps (euler); heun calls the network twice"
    )
    for name, of in (("rho", "7"), ("sigma-min", "the model's"), ("sigma-max", "the model's")):
        option(command, f"--{name}", "X", f"of the noise levels ({of})", float)
    command.add_argument(
        "--guidance", type=float, nargs=2, metavar=("FIRST", "LAST"), help="per frame (forward: 1.2 1.2)"
    )
    command.add_argument("--dynamic-guidance", action="store_true", help="let the guidance grow over the steps")
    option(command, "--fps", "X", "frame rate that the model is told (7)", float)
    option(command, "--motion-bucket-id", "X", "motion that the model is told (127)", float)
    option(command, "--noise-aug-strength", "X", "noise added to the conditions (0)", float)
    option(command, "--decode-chunk-size", "N", "frames that the VAE decodes together (8)", int)
    option(command, "--decode-overlap", "N", "frames over which these fade (0; 2 in blended windows)", int)
    option(command, "--seed", "N", "of the initial noise (0)", int)
    command.add_argument(
        "--deterministic", action=argparse.BooleanOptionalAction, help="one step, for models trained so (what it was)"
    )


class OfEdit(argparse.Action):
    """An option of the edit that is being described: `args.edits` has a dictionary for each."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        edits = namespace.edits = namespace.edits or [{}]
        if self.dest == "then":
            edits.append({})
        elif self.dest in ("set", "scale", "replace"):
            edits[-1].setdefault(self.dest, []).append(values)
        else:
            edits[-1][self.dest] = True if self.nargs == 0 else values


def editing(command: cli.Parser) -> None:
    command.set_defaults(edits=None)
    of_edit = {"action": OfEdit, "default": argparse.SUPPRESS}
    add = lambda name, help, **how: command.add_argument(name, help=help, **of_edit, **how)
    add("--set", "basecolor, roughness or metallic; #rrggbb, or numbers 0 to 1", nargs="+", metavar=("NAME", "VALUE"))
    add("--scale", "one to multiply, a basecolor in linear light", nargs="+", metavar=("NAME", "FACTOR"))
    add("--replace", "by a picture or by the frames of a clip", nargs="+", metavar=("NAME", "PATH"))
    add("--mask", "where: an image, or a clip of as many frames", type=cli.path, metavar="PATH")
    add("--color-range", "where the basecolor is that near to a colour", nargs="+", metavar=("COLOR", "DISTANCE"))
    add("--depth-range", "where the depth is in this range", type=float, nargs=2, metavar=("NEAR", "FAR"))
    add("--invert", "everywhere else", nargs=0)
    add("--feather", "pixels over which the mask's edges are soft, to either side", type=float, metavar="PIXELS")
    add("--then", "begins another edit, with a mask of its own", nargs=0)


def insertion(command: cli.Parser) -> None:
    option(
        command, "--object", "WHAT", "folder of G-buffers with masks, mesh (.ply .obj .gltf .glb), or shape: cube, "
        "torus, knot, …", default="sphere",
    )  # fmt: skip
    option(command, "--object-frame", "I", "frame to hold of a folder of G-buffers", int)
    numbers = lambda name, metavar, help: command.add_argument(
        name, type=float, nargs=len(metavar), metavar=metavar, help=help
    )
    numbers("--position", ("X", "Y"), "of a mesh or shape in the picture, 0 0 is its upper left corner (0.5 0.5)")
    option(command, "--height", "H", "of it, where the picture's is 1 (0.4)", float)
    numbers("--turn", ("YAW", "PITCH", "ROLL"), "of it in degrees (0 0 0)")
    option(command, "--fov", "DEGREES", "field of view of the picture's height that it is seen with (40)", float)
    command.add_argument(
        "--depth", type=float, nargs="+", metavar=("NEAR", "FAR"),
        help="the object's in the clip, 0 to 1; or of its middle only (that of what it stands on)",
    )  # fmt: skip
    command.add_argument("--basecolor", nargs="+", metavar="COLOR", help="of all of it: #rrggbb, or numbers 0 to 1")
    for name in MATERIAL[1:]:
        command.add_argument(f"--{name}", nargs=1, metavar="X", help="of all of it, 0 to 1")
    command.add_argument("--guide", action="store_true", help="show it over the RGB too, in a plain light, unshadowed")


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


def stops(text: str) -> float | str:
    """A number, or a word, which may be "auto"; others are an error of the light."""
    try:
        return float(text)
    except ValueError:
        return text


def lights(args) -> Lights:
    names = (
        "rotation", "flip", "yaw", "pitch", "roll", "strength", "exposure", "blur",
        "rotate_light", "elevation", "elevation_sign", "projection",
    )  # fmt: skip
    return Lights(
        [builtin.environment(word) for word in args.environment],
        poses=read_poses(args.poses, relative=True) if args.poses else None,
        size=multiples_of_64("--environment-size", args.environment_size),
        **{name: getattr(args, name) for name in names},
    )


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

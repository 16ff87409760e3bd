"""The command line of sample.py: its commands and their options."""

import argparse
from collections.abc import Callable

from drender import assets, cli
from drender.config import DEFAULT_PASSES, DTYPES
from drender.diffusion import SAMPLERS
from drender.lighting.camera import ELEVATION_SIGNS
from drender.lighting.projection import PROJECTIONS
from drender.media.encodings import KINDS, NORMALS, TRANSFERS
from drender.media.resize import MODES as FIT_MODES
from drender.media.resize import OUTPUTS
from drender.sampling.inputs import MODES

MATERIAL = ("basecolor", "roughness", "metallic")


def parser(description: str) -> cli.Parser:
    top = cli.Parser(description=description)
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
        images(command)
        option(command, "--devices", "N", "how many local devices share the work (all)", int)
        command.add_argument(
            "--process", type=int, nargs=2, metavar=("I", "N"), default=(0, 1),
            help="which of how many processes, from 0, that share the clips",
        )  # fmt: skip
        command.add_argument("--dtype", choices=DTYPES, help="to compute in (float32 on a CPU, else bfloat16)")
    for command in (inverse, relight):
        command.add_argument(
            "--passes", nargs="+", metavar="NAME", default=DEFAULT_PASSES, help="G-buffers to estimate"
        )
    edit = add("edit", help="G-buffers to G-buffers of other materials; several edits with --then between them")
    insert = add("insert", help="an object into G-buffers, by depth and mask")
    for command in (edit, insert):
        files(command, "folder of G-buffers, or of such folders")
        command.add_argument("--bits", type=int, choices=(8, 16), help="of the PNG files (those of the input)")
        option(command, "--overlap", "N", "frames that chunks share, where no record tells (6)", int)
    editing(edit)
    insertion(insert)
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
    command.add_argument("--no-video", dest="video", action="store_false", help="write no mp4 and no contact sheet")
    command.add_argument("--html", action="store_true", help="write index.html, a page to look at the results")
    option(command, "--quality", "Q", "of the mp4, 0 to 10; 7 is x264's CRF 18, a step is 3 CRF", float, default=7.0)


def images(command: cli.Parser) -> None:
    command.add_argument("--format", choices=KINDS, default="png", help="of the images; exr: half float")
    command.add_argument("--bits", type=int, choices=(8, 16), help="of the PNG files (8)")
    command.add_argument("--transfer", choices=TRANSFERS, help="of colours in the images (srgb; linear in EXR)")


def light(command: cli.Parser) -> None:
    command.add_argument(
        "--environment", nargs="+", type=cli.path, default=assets.LIGHTS, metavar="HDR",
        help=".hdr, .exr or LDR lat-long maps, folders with a map for every frame, or built-in maps: "
        f"{', '.join(assets.environments())}",
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


def stops(text: str) -> float | str:
    """A number, or a word, which may be "auto"; others are an error of the light."""
    try:
        return float(text)
    except ValueError:
        return text

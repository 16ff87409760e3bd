"""The commands `edit` and `insert`: options to jobs."""

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drender import assets, cli
from drender.editing.insertion import FileObject, RenderedObject
from drender.editing.jobs import EditingJob, EditJob, InsertJob
from drender.editing.steps import EditStep
from drender.errors import InputError
from drender.media.encodings import InputEncoding
from drender.sampling.commands import NOT_RECORDED, cameras, input_encoding
from drender.sampling.execute import execute
from drender.sampling.inputs import ChunkConfig
from drender.sampling.lights import OWN_LIGHT, Lights
from drender.sampling.options import GBUFFERS, BufferEncodingOptions, FileOptions, add_options, option, select
from drender.sampling.outputs import RunConfig

DEFAULT_OVERLAP = 6


@dataclass(frozen=True, kw_only=True)
class EditingOptions(FileOptions, BufferEncodingOptions):
    """Options of both commands."""

    input: str | None = option(GBUFFERS, metavar="PATH")
    bits: int | None = option("bits per channel of the PNG files (those of the input)", choices=(8, 16))
    overlap: int | None = option(f"frames that chunks share, where no record gives it ({DEFAULT_OVERLAP})", metavar="N")
    poses: str | None = option("transforms.json with camera-to-world poses, for --input-normals world", metavar="JSON")


@dataclass(frozen=True, kw_only=True)
class EditOptions(EditingOptions):
    """Change the materials of G-buffers; --then separates several edits."""


@dataclass(frozen=True, kw_only=True)
class InsertOptions(EditingOptions):
    """Insert an object into G-buffers, by depth and mask."""

    object: str = option(
        "folder of G-buffers with masks, mesh (.ply .obj .gltf .glb), or shape: cube, torus, knot, …", "sphere", "WHAT"
    )
    object_frame: int | None = option("index of a frame of the object's folder to hold", metavar="I")
    position: tuple[float, float] | None = option(
        "center of a mesh or shape in the image, from 0 0 (upper left) to 1 1 (0.5 0.5)", metavar=("X", "Y")
    )
    height: float | None = option("height of a mesh or shape, as a fraction of the image's (0.4)", metavar="H")
    turn: tuple[float, float, float] | None = option(
        "rotation of a mesh or shape in degrees: right, downward, counter-clockwise (0 0 0)",
        metavar=("YAW", "PITCH", "ROLL"),
    )
    fov: float | None = option(
        "vertical field of view in degrees, of a mesh or shape (40) and for the clip's light (50)", metavar="DEGREES"
    )
    depth: tuple[float, ...] | None = option(
        "depth of the object in the clip, 0 to 1, or of its center only (that of the surface it stands on)",
        metavar=("NEAR", "FAR"),
    )
    basecolor: tuple[str, ...] | None = option("color of the whole object: #rrggbb, or numbers 0 to 1", metavar="COLOR")
    roughness: tuple[str] | None = option("roughness of the whole object, 0 to 1", metavar="X")
    metallic: tuple[str] | None = option("metallic of the whole object, 0 to 1", metavar="X")
    environment: str | None = option(
        "write the clip's own light, estimated without the object, for forward --environment clip", choices=(OWN_LIGHT,)
    )
    guide: bool = option("write pictures of the object over the RGB too, in a plain light without shadows", False)


def add_commands(add: Callable[..., cli.Parser]) -> None:
    """Add the commands to a parser whose `add_commands` returned `add`; `args.run(args)` runs the chosen one."""
    for name, options, build in (("edit", EditOptions, build_edit), ("insert", InsertOptions, build_insert)):
        command = add(name, help=options.__doc__.rstrip("."))
        add_options(command, options)
        command.set_defaults(run=functools.partial(run, build=build))
        if name == "edit":
            add_edit_options(command)


def run(args: Any, build: Callable[..., EditingJob]) -> None:
    """Run a command. It needs no models, and leaves accelerators to those that do."""
    jax.config.update("jax_platforms", "cpu")
    args.input = args.input or str(assets.GBUFFERS)
    args.output = args.output or str(Path("outputs") / args.command)
    settings = {name: value for name, value in sorted(vars(args).items()) if name not in NOT_RECORDED}
    config = RunConfig(
        Path(args.input), Path(args.output), {"command": args.command, **settings}, dependencies=dependencies(args),
        chunks=ChunkConfig(sys.maxsize, DEFAULT_OVERLAP if args.overlap is None else args.overlap, "all"),  # unchanged
        video=args.video, quality=args.quality, overwrite=args.overwrite, html=args.html,
    )  # fmt: skip
    options = EditingOptions(**select(EditingOptions, args))
    if options.poses is not None and options.input_normals != "world":
        raise InputError(f"--poses {options.poses}: the poses are for --input-normals world; leave them out")
    job = build(config, args, encoding=input_encoding(options), cameras=cameras(options))
    execute(job, lambda devices: (), jax.local_devices()[:1])


def dependencies(args: Any) -> tuple[Path, ...]:
    """Return the files and folders of masks, textures, poses and the object."""
    words = [args.poses, getattr(args, "object", None)]
    for edit in getattr(args, "edits", ()):
        words += [edit.get("mask"), *(" ".join(path) for _, *path in edit.get("replace", []))]
    return tuple(Path(word) for word in words if word and Path(word).exists())


# --- edit ---


class OfEdit(argparse.Action):
    """Collect options into `args.edits`, a dictionary per edit; `--then` begins the next."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        edits = namespace.edits = getattr(namespace, "edits", None) or [{}]
        if self.dest == "then":
            edits.append({})
        elif self.dest in ("set", "scale", "replace"):
            edits[-1].setdefault(self.dest, []).append(values)
        else:
            edits[-1][self.dest] = True if self.nargs == 0 else values


def add_edit_options(command: cli.Parser) -> None:
    """Add the options that `OfEdit` collects."""
    add = functools.partial(command.add_argument, action=OfEdit, default=argparse.SUPPRESS)
    value = "new value of basecolor, roughness or metallic: #rrggbb, or numbers 0 to 1"
    add("--set", nargs="+", metavar=("NAME", "VALUE"), help=value)
    factor = "factor on a buffer, for a basecolor on linear light"
    add("--scale", nargs="+", metavar=("NAME", "FACTOR"), help=factor)
    add("--replace", nargs="+", metavar=("NAME", "PATH"), help="image or clip in a buffer's place")
    mask = "area of the edit: an image, or a clip of as many frames"
    add("--mask", type=cli.path, metavar="PATH", help=mask)
    colors = "area: basecolors within a distance of a color"
    add("--color-range", nargs="+", metavar=("COLOR", "DISTANCE"), help=colors)
    add("--depth-range", type=float, nargs=2, metavar=("NEAR", "FAR"), help="area: depths in a range, 0 to 1")
    add("--invert", nargs=0, help="edit the area outside of the masks instead")
    add("--feather", type=float, metavar="PIXELS", help="half width of soft edges of the area, in pixels")
    add("--then", nargs=0, help="begin another edit, with masks of its own")


def build_edit(config: RunConfig, args: Any, encoding: InputEncoding, cameras: np.ndarray | None) -> EditJob:
    steps = [EditStep.parse(**edit) for edit in getattr(args, "edits", [{}])]
    return EditJob(config, args.bits, encoding, cameras, steps)


# --- insert ---


def build_insert(config: RunConfig, args: Any, encoding: InputEncoding, cameras: np.ndarray | None) -> InsertJob:
    given = {name: value for name, value in vars(args).items() if value is not None}
    material = {label: " ".join(given[label]) for label in ("basecolor", "roughness", "metallic") if label in given}
    own_light = Lights([OWN_LIGHT], fov=args.fov) if args.environment else None
    view = {name: given[name] for name in ("position", "height", "turn", "fov") if name in given}
    if not Path(args.object).is_dir():
        if args.object_frame is not None:
            raise InputError(f"--object-frame is for folders of G-buffers; --object {args.object} is not a folder")
        inserted = RenderedObject(args.object, **view)
        config = replace(config, dependencies=(*config.dependencies, *inserted.files))
    elif names := [name for name in view if name != "fov" or not own_light]:
        raise InputError(f"--{names[0]} is for meshes and shapes; --object {args.object} is a folder")
    else:
        inserted = FileObject(args.object, args.object_frame, encoding, cameras)
    depth = args.depth and tuple(args.depth)
    return InsertJob(config, args.bits, encoding, cameras, inserted, depth, material, args.guide, own_light)

"""Command line that makes training data.

python -m drender.data label  CLIPS FOLDER --checkpoint INVERSE      real clips to clips with estimated G-buffers
python -m drender.data encode FOLDER SET   --checkpoint CHECKPOINT   clips to cached latents
python -m drender.data import hypersim|interiorverse|blender SOURCE FOLDER   a data set or renders to clips
"""

import jax

from drender import cli
from drender.checkpoints.cache import resolve
from drender.config import DEFAULT_PASSES, DTYPES, ENVIRONMENT_LABELS
from drender.data.augment import AugmentationConfig
from drender.data.encode import encode_clips
from drender.data.importers import READERS, import_clips
from drender.data.label import label_clips
from drender.errors import InputError


def main() -> None:
    args = {name: tuple(x) if isinstance(x, list) else x for name, x in vars(parser().parse_args()).items()}
    command = args.pop("command")
    if command == "import":
        import_clips(**args)
        return
    num_devices = args.pop("devices")
    if num_devices is not None and num_devices < 1:
        raise InputError(f"--devices: expected at least 1, got {num_devices}")
    args["devices"] = jax.local_devices()[:num_devices]
    args["checkpoint"] = resolve(args["checkpoint"])
    if command == "label":
        label_clips(**args)
    else:
        args["augmentation"] = AugmentationConfig(args.pop("flip"), args.pop("exposure_range"), args.pop("rotation"))
        args["labels"] += ENVIRONMENT_LABELS if args.pop("environment") else ()
        encode_clips(**args)


def parser() -> cli.Parser:
    """Return a parser whose options are the arguments of `label_clips`, `encode_clips` and `import_clips`."""
    top = cli.Parser(prog="python -m drender.data", description="Make training data.")
    add = top.add_commands()
    labeling = add("label", help="real clips to clips with estimated G-buffers")
    labeling.add_argument(
        "source", type=cli.path, metavar="CLIPS", help="image, video, folder of frames, or folder of these"
    )
    labeling.add_argument("destination", type=cli.path, metavar="FOLDER", help="output folder of the clips")
    _number(labeling, "--frames", help="frames per chunk (the model's); an incomplete last chunk is dropped")
    labeling.add_argument("--passes", nargs="+", default=DEFAULT_PASSES, metavar="NAME", help="G-buffers to estimate")
    _number(labeling, "--steps", dest="num_steps", help="network evaluations per pass (20)")
    labeling.add_argument(
        "--environments", type=cli.path, metavar="FOLDER", help="folder with the light of clip NAME in NAME.hdr or .exr"
    )
    labeling.add_argument("--light", action="store_true", help="estimate the light of every clip; write light.json")
    _number(
        labeling,
        "--fov",
        float,
        "DEGREES",
        help="vertical field of view of the clips, in degrees, for --light (50)",
    )
    labeling.add_argument("--overwrite", action="store_true", help="replace results of other options, and light.json")

    encoding = add("encode", help="clips to cached latents")
    encoding.add_argument("source", type=cli.path, metavar="FOLDER", help="clips: rgb, G-buffers and light.json")
    encoding.add_argument("destination", type=cli.path, metavar="SET", help="output folder of the latents")
    _number(
        encoding, "--frames", help="frames per entry (as many as every clip has); longer clips are cut into windows"
    )
    encoding.add_argument(
        "--labels", nargs="+", default=("rgb", *DEFAULT_PASSES), metavar="NAME", help="image kinds to encode"
    )
    encoding.add_argument(
        "--no-environment", dest="environment", action="store_false", help="leave out the environment images"
    )
    _pair(encoding, "--environment-size", ("H", "W"), help="pixels of the environment images (the checkpoint's)")
    _number(
        encoding,
        "--variants",
        default=1,
        help="variants per window: the first is unchanged, others are augmented by the options below",
    )
    _number(encoding, "--flip", float, "P", default=0.5, help="probability of mirroring")
    _pair(encoding, "--exposure-range", ("LOW", "HIGH"), float, default=(1.0, 1.0), help="factor on the radiance")
    _number(encoding, "--rotation", float, "DEGREES", default=0.0, help="largest turn of the light")
    _number(encoding, "--num-workers", default=4, help="threads that read ahead of the devices")

    importing = add("import", help="a public data set, or renders of Blender, to clips")
    importing.add_argument("kind", choices=READERS, help="hypersim (needs drender[hypersim]), interiorverse or blender")
    importing.add_argument("source", type=cli.path, metavar="SOURCE", help="folder of the set, or of one scene")
    importing.add_argument("destination", type=cli.path, metavar="FOLDER", help="output folder of the clips")

    for command, model in ((labeling, "inverse renderer"), (encoding, "checkpoint whose VAE encodes")):
        command.add_argument("--checkpoint", type=cli.path, required=True, metavar="FOLDER", help=model)
        _pair(command, "--size", ("H", "W"), help="pixels to cover (the checkpoint's)")
        _number(command, "--seed", default=0, help="random seed")
        _pair(
            command, "--process", ("I", "N"), default=(0, 1), help="index and number of processes that share the work"
        )
        _number(command, "--devices", help="number of local devices that share the work (all)")
        command.add_argument(
            "--dtype", choices=DTYPES, help="precision of the computation (float32 on a CPU, else bfloat16)"
        )
    return top


def _number(command: cli.Parser, name: str, kind: type = int, metavar: str = "N", **options) -> None:
    command.add_argument(name, type=kind, metavar=metavar, **options)


def _pair(command: cli.Parser, name: str, metavar: tuple[str, str], kind: type = int, **options) -> None:
    command.add_argument(name, type=kind, nargs=2, metavar=metavar, **options)


if __name__ == "__main__":
    cli.run(main)

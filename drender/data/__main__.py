"""TODO."""

import jax

from drender import cli
from drender.config import DEFAULT_PASSES, DTYPES, ENVIRONMENT_LABELS
from drender.data.augment import AugmentationConfig
from drender.data.encode import encode
from drender.data.label import label
from drender.errors import InputError


def main() -> None:
    args = {name: tuple(x) if isinstance(x, list) else x for name, x in vars(parser().parse_args()).items()}
    command, devices = args.pop("command"), args.pop("devices")
    if devices is not None and devices < 1:
        raise InputError(f"--devices {devices}: must be 1 or more")
    args["devices"] = jax.local_devices()[:devices]
    if command == "label":
        label(**args)
    else:
        args["augmentation"] = AugmentationConfig(args.pop("flip"), args.pop("intensity"), args.pop("rotation"))
        args["labels"] += ENVIRONMENT_LABELS if args.pop("environment") else ()
        encode(**args)


def parser() -> cli.Parser:
    """The options are the arguments of `label` and `encode`."""
    top = cli.Parser(prog="python -m drender.data", description="Make the data that training reads.")
    add = top.add_commands()
    labelling = add("label", help="real clips to clips with estimated G-buffers")
    labelling.add_argument("source", type=cli.path, metavar="CLIPS", help="image, video, folder of frames, or of such")
    labelling.add_argument("destination", type=cli.path, metavar="FOLDER", help="for the clips")
    number(labelling, "--frames", help="per chunk (the model's); what is left at the end of a clip is left out")
    labelling.add_argument("--passes", nargs="+", default=DEFAULT_PASSES, metavar="NAME", help="G-buffers to estimate")
    number(labelling, "--steps", dest="num_steps", help="calls of the network per pass (20)")
    labelling.add_argument(
        "--environments", type=cli.path, metavar="FOLDER", help="light of clip NAME in NAME.hdr or .exr"
    )
    labelling.add_argument("--overwrite", action="store_true", help="replace results made with other options")

    encoding = add("encode", help="clips to cached latents")
    encoding.add_argument("source", type=cli.path, metavar="FOLDER", help="clips: rgb, G-buffers and light.json")
    encoding.add_argument("destination", type=cli.path, metavar="SET", help="folder for the latents")
    number(encoding, "--frames", help="per entry (as many as every clip has); longer clips are cut into windows")
    encoding.add_argument(
        "--labels", nargs="+", default=("rgb", *DEFAULT_PASSES), metavar="NAME", help="images to encode"
    )
    encoding.add_argument(
        "--no-environment", dest="environment", action="store_false", help="leave out the images of the light"
    )
    pair(encoding, "--environment-size", ("H", "W"), help="of the images of the light (the checkpoint's)")
    number(encoding, "--variants", default=1, help="of every window; the first is as it is, the others are augmented:")
    number(encoding, "--flip", float, "P", default=0.5, help="probability that a variant is mirrored")
    pair(encoding, "--intensity", ("LEAST", "MOST"), float, default=(1.0, 1.0), help="factor on its radiance")
    number(encoding, "--rotation", float, "DEGREES", default=0.0, help="up to which its light is turned")
    number(encoding, "--threads", default=4, help="that read ahead of the devices")

    for command, checkpoint in ((labelling, "of the inverse renderer"), (encoding, "whose VAE encodes")):
        command.add_argument("--checkpoint", type=cli.path, required=True, metavar="FOLDER", help=checkpoint)
        pair(command, "--size", ("H", "W"), help="to cover (the checkpoint's)")
        number(command, "--seed", default=0, help="of what is random")
        pair(command, "--process", ("I", "N"), default=(0, 1), help="which of how many processes that share the work")
        number(command, "--devices", help="how many local devices share the work (all)")
        command.add_argument("--dtype", choices=DTYPES, help="to compute in (float32 on a CPU, else bfloat16)")
    return top


def number(command: cli.Parser, name: str, kind: type = int, metavar: str = "N", **how) -> None:
    command.add_argument(name, type=kind, metavar=metavar, **how)


def pair(command: cli.Parser, name: str, metavar: tuple[str, str], kind: type = int, **how) -> None:
    command.add_argument(name, type=kind, nargs=2, metavar=metavar, **how)


if __name__ == "__main__":
    cli.run(main)

"""Command line that makes training data.

python -m drender.data label  CLIPS FOLDER --checkpoint INVERSE      real clips to clips with estimated G-buffers
python -m drender.data encode FOLDER SET   --checkpoint CHECKPOINT   clips to cached latents
python -m drender.data import hypersim|interiorverse|blender SOURCE FOLDER   a data set or renders to clips
"""

import dataclasses
from dataclasses import dataclass

import jax

from drender import cli
from drender.checkpoints.cache import resolve
from drender.config import DEFAULT_PASSES, ENVIRONMENT_LABELS
from drender.data.augment import AugmentationConfig
from drender.data.encode import encode_clips
from drender.data.importers import READERS, import_clips
from drender.data.label import LabelOptions, label_clips
from drender.errors import InputError
from drender.sampling.options import DeviceOptions, add_options, option, select


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(DeviceOptions):
    """Clips to cached latents."""

    source: str = option("clips: rgb, G-buffers and light.json", metavar="FOLDER", name="source")
    destination: str = option("output folder of the latents", metavar="SET", name="destination")
    checkpoint: str = option("checkpoint whose VAE encodes", metavar="FOLDER", required=True)
    frames: int | None = option(
        "frames per entry (as many as every clip has); longer clips are cut into windows", metavar="N"
    )
    labels: tuple[str, ...] = option("image kinds to encode", ("rgb", *DEFAULT_PASSES), "NAME")
    environment: bool = option("leave out the environment images", True, name="--no-environment", action="store_false")
    environment_size: tuple[int, int] | None = option(
        "pixels of the environment images (the checkpoint's)", metavar=("H", "W")
    )
    size: tuple[int, int] | None = option("pixels to cover (the checkpoint's)", metavar=("H", "W"))
    variants: int = option(
        "variants per window: the first is unchanged, others are augmented by the options below", 1, "N"
    )
    flip: float = option("probability of mirroring", 0.5, "P")
    exposure_range: tuple[float, float] = option("factor on the radiance", (1.0, 1.0), ("LOW", "HIGH"))
    rotation: float = option("largest turn of the light", 0.0, "DEGREES")
    crop: float = option("smallest side of a random crop, relative to the frame's", 1.0, "FRACTION")
    seed: int = option("random seed", 0, "N")
    num_workers: int = option("threads that read ahead of the devices", 4, "N")


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """A public data set, or renders of Blender, to clips."""

    kind: str = option(
        "hypersim (needs drender[hypersim]), interiorverse or blender", name="kind", choices=tuple(READERS)
    )
    source: str = option("folder of the set, or of one scene", metavar="SOURCE", name="source")
    destination: str = option("output folder of the clips", metavar="FOLDER", name="destination")


COMMANDS = {"label": LabelOptions, "encode": EncodeOptions, "import": ImportOptions}


def main() -> None:
    top = cli.Parser(prog="python -m drender.data", description="Make training data.")
    add = top.add_commands()
    for name, options in COMMANDS.items():
        add_options(add(name, help=options.__doc__.rstrip(".")), options)
    chosen = top.parse_args()
    args = select(COMMANDS[chosen.command], chosen)
    if chosen.command == "import":
        import_clips(**args)
        return
    num_devices = args.pop("devices")
    if num_devices is not None and num_devices < 1:
        raise InputError(f"--devices: expected at least 1, got {num_devices}")
    devices = jax.local_devices()[:num_devices]
    args["checkpoint"] = str(resolve(args["checkpoint"]))
    if chosen.command == "label":
        label_clips(LabelOptions(**args), devices)
    else:
        names = [field.name for field in dataclasses.fields(AugmentationConfig)]
        args["augmentation"] = AugmentationConfig(**{name: args.pop(name) for name in names})
        args["labels"] += ENVIRONMENT_LABELS if args.pop("environment") else ()
        encode_clips(**args, devices=devices)


if __name__ == "__main__":
    cli.run(main)

"""Command line that makes training data.

python -m drender.data label  CLIPS FOLDER --checkpoint INVERSE      real clips to clips with estimated G-buffers
python -m drender.data encode FOLDER SET   --checkpoint CHECKPOINT   clips to cached latents
python -m drender.data import hypersim|interiorverse|blender SOURCE FOLDER   a data set or renders to clips
"""

from dataclasses import dataclass

import jax

from drender import cli
from drender.checkpoints.cache import resolve
from drender.data.encode import EncodeOptions, encode_clips
from drender.data.importers import READERS, import_clips
from drender.data.label import LabelOptions, label_clips
from drender.errors import InputError
from drender.sampling.options import add_options, option, select


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
        encode_clips(EncodeOptions(**args), devices)


if __name__ == "__main__":
    cli.run(main)

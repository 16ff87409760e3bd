"""Makes checkpoints of released torch weights and of training runs; `--to-torch` goes back to the released layout."""

import jax

from drender import cli
from drender.checkpoints import convert
from drender.config import DTYPES
from drender.errors import InputError
from drender.training import run_dir
from drender.training.export import export


def main() -> None:
    args = parser().parse_args()
    jax.config.update("jax_platforms", "cpu")  # nothing here needs an accelerator
    if args.dtype and not run_dir.is_run(args.source):
        raise InputError(f"--dtype {args.dtype}: only for training runs; weights are converted bit for bit")
    if args.to_torch:
        convert.to_released(args.source, args.destination, args.overwrite)
    elif run_dir.is_run(args.source):
        export(args.source, args.destination, args.overwrite, args.dtype)
    else:
        convert.from_released(args.source, args.destination, args.overwrite)


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__)
    top.add_argument(
        "source",
        type=cli.path,
        help="folder in the released layout, Hugging Face name such as owner/name, or training run",
    )
    top.add_argument("destination", type=cli.path, help="folder to write")
    top.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is at the destination")
    top.add_argument("--to-torch", action="store_true", help="from one of our checkpoints to the released layout")
    top.add_argument("--dtype", choices=DTYPES, help="to store a training run's weights in (float32 where they learnt)")
    return top


if __name__ == "__main__":
    cli.run(main)

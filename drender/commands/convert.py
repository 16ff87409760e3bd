"""Convert released torch weights or a training run to a checkpoint, or a checkpoint back with `--to-torch`."""

import argparse

import jax

from drender import cli
from drender.checkpoints import convert
from drender.checkpoints.cache import BUILT_IN, resolve
from drender.config import DTYPES
from drender.errors import InputError
from drender.training import run_record
from drender.training.export import export


def main(words: list[str] | None = None, prog: str | None = None) -> None:
    """Convert; `words` are the command line's, by default this process's."""
    args = parser(prog).parse_args(words)
    jax.config.update("jax_platforms", "cpu")  # a conversion is only file access
    is_run = not args.to_torch and run_record.is_run(args.source)
    if args.step != "last" and not is_run:
        raise InputError(f"--step {args.step}: only for training runs, which {args.source} is not")
    if (args.base or args.ema) and (args.to_torch or is_run):
        raise InputError("--base and --ema: only for released weights")
    if args.to_torch:
        # Other names would be downloaded and converted, only to be converted back.
        checkpoint = resolve(args.source) if args.source in BUILT_IN else args.source
        convert.to_released(checkpoint, args.destination, args.overwrite, args.dtype)
    elif is_run:
        export(args.source, args.destination, args.overwrite, args.dtype, args.step)
    elif args.dtype:
        raise InputError(f"--dtype {args.dtype}: only for training runs and --to-torch; other weights keep their dtype")
    else:
        unet = "unet_ema" if args.ema else "unet"
        convert.from_released(args.source, args.destination, args.overwrite, base=args.base, unet=unet)


def parser(prog: str | None) -> cli.Parser:
    top = cli.Parser(prog=prog, description=__doc__)
    source = "folder in the released layout, Hugging Face name owner/name[@revision], or training run; with --to-torch "
    base = "released weights of whatever the source lacks, such as the VAE"
    dtype = "dtype to store a training run's or --to-torch's weights in (as they are)"
    step = "checkpoint of a training run: last, best (by its keep_best), or a step"
    top.add_argument("source", type=cli.path, help=source + "a checkpoint")
    top.add_argument("destination", type=cli.path, help="folder to write")
    top.add_argument("--base", type=cli.path, metavar="SOURCE", help=base)
    top.add_argument("--ema", action="store_true", help="take the UNet from unet_ema/, the average of its training")
    top.add_argument("--overwrite", action="store_true", help="replace the checkpoint at the destination")
    top.add_argument("--to-torch", action="store_true", help="convert a checkpoint to the released layout")
    top.add_argument("--dtype", choices=DTYPES, help=dtype)
    top.add_argument("--step", type=_step, metavar="N", default="last", help=step)
    return top


def _step(text: str) -> int | str:
    if text in ("last", "best"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected last, best or a number, got {text!r}")
    return int(text)

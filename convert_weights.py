"""Converts released torch checkpoints for this project; `--to-torch` converts back."""

import jax

from drender import cli, convert


def main() -> None:
    args = parser().parse_args()
    jax.config.update("jax_platforms", "cpu")  # nothing here needs an accelerator
    conversion = convert.to_released if args.to_torch else convert.from_released
    conversion(args.source, args.destination, args.overwrite)


def parser() -> cli.Parser:
    top = cli.Parser(description=__doc__)
    top.add_argument(
        "source", type=cli.path, help="folder in the released layout, or a Hugging Face name such as owner/name"
    )
    top.add_argument("destination", type=cli.path, help="folder to write")
    top.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is at the destination")
    top.add_argument("--to-torch", action="store_true", help="from one of our checkpoints to the released layout")
    return top


if __name__ == "__main__":
    cli.run(main)

"""Compare folders of clips: `python -m drender.metrics PREDICTED TRUTH`."""

import argparse

from tqdm import tqdm

from drender import cli
from drender.metrics.compare import compare, summarize, table, write_json
from drender.metrics.lpips import LPIPS


def main() -> None:
    args = parser().parse_args()
    lpips = None if args.lpips is None else LPIPS.load(args.lpips)
    clips = {}
    for comparison in tqdm(compare(args.predicted, args.truth, args.pair or (), args.mask), disable=None, leave=False):
        clips.setdefault(comparison.clip, {})[comparison.row] = comparison.scores(lpips)
    summary = summarize(clips)
    print(table(summary))
    if args.json is not None:
        options = {name: getattr(args, name) for name in ("predicted", "truth", "mask", "lpips")}
        write_json(args.json, options | {"labels": summary, "clips": clips})


def parser() -> cli.Parser:
    top = cli.Parser(prog="python -m drender.metrics", description="Compares predicted clips with true ones.")
    top.add_argument("predicted", type=cli.path, help="folder of a clip or of clips, as sample.py writes them")
    top.add_argument("truth", type=cli.path, help="folder of the same clips")
    top.add_argument(
        "--pair", type=_pair, action="append", metavar="PREDICTED=TRUTH",
        help="labels to compare beside those that both have, such as env0000=rgb; may be given again",
    )  # fmt: skip
    top.add_argument("--mask", metavar="LABEL", help="of the truth's masks: only what is white in them counts")
    top.add_argument("--lpips", type=cli.path, metavar="FOLDER", help="with torchvision's and lpips' weight files")
    top.add_argument("--json", type=cli.path, metavar="FILE", help="to write, with the scores of every clip")
    return top


def _pair(text: str) -> tuple[str, str]:
    predicted, _, truth = text.partition("=")
    if not (predicted and truth):
        raise argparse.ArgumentTypeError(f"{text!r} is not PREDICTED=TRUTH, such as env0000=rgb")
    return predicted, truth


if __name__ == "__main__":
    cli.run(main)

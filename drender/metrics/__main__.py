"""Compare folders of clips, as drender writes them: `python -m drender.metrics PREDICTED TRUTH`."""

import argparse

from tqdm import tqdm

from drender import cli
from drender.metrics.compare import compare, summarize, table, write_json
from drender.metrics.lpips import LPIPS, NETWORKS


def main() -> None:
    top = cli.Parser(prog="python -m drender.metrics", description="Compare predicted clips with true ones.")
    top.add_argument("predicted", type=cli.path, help="folder of a clip or of clips, as drender writes them")
    top.add_argument("truth", type=cli.path, help="folder of the same clips")
    pairs = "labels to compare besides those that both sides have, such as env0000=rgb; repeatable"
    top.add_argument("--pair", type=_pair, action="append", default=[], metavar="PREDICTED=TRUTH", help=pairs)
    top.add_argument("--mask", metavar="LABEL", help="label of the truth's masks, white where pixels count")
    top.add_argument("--lpips", choices=NETWORKS, help="network to measure LPIPS with; needs drender[metrics]")
    top.add_argument("--json", type=cli.path, metavar="FILE", help="file to write all scores to, also of every clip")
    args = top.parse_args()
    lpips = None if args.lpips is None else LPIPS(args.lpips)
    clips = {}
    for comparison in tqdm(compare(args.predicted, args.truth, args.pair, args.mask), disable=None, leave=False):
        clips.setdefault(comparison.clip, {})[comparison.row] = comparison.scores(lpips)
    summary = summarize(clips)
    print(table(summary))
    if args.json is not None:
        options = {name: getattr(args, name) for name in ("predicted", "truth", "mask", "lpips")}
        write_json(args.json, options | {"labels": summary, "clips": clips})


def _pair(text: str) -> tuple[str, str]:
    predicted, _, truth = text.partition("=")
    if not (predicted and truth):
        raise argparse.ArgumentTypeError(f"{text!r} is not PREDICTED=TRUTH, such as env0000=rgb")
    return predicted, truth


if __name__ == "__main__":
    cli.run(main)

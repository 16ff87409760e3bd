"""Many damaged files for every reader: the table of what was tried, and what was wrong.

    python benchmarks/fuzz.py [--seconds 300] [--seed 0] [--only png exr]

The files and the properties are those of tests/test_fuzz.py (tests/fuzzing.py): a file is read, or refused with one
line; nothing else is raised, the process lives, takes at most 3 GiB and 20 s.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import fuzzing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="in all (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (0)")
    parser.add_argument("--only", nargs="+", default=(*fuzzing.VALID, "gbuffers"), help="these readers (all)")
    parser.add_argument("--keep", type=Path, help="a folder for the files that show something wrong")
    args = parser.parse_args()
    print("| reader | files | read | refused in one line | wrong |\n|---|---|---|---|---|")
    total, read = Counter(), fuzzing.Reader()
    read.start()
    for name in args.only:
        counts, bugs = Counter(), Counter()
        draw, ends = random.Random(f"{args.seed} {name}"), time.monotonic() + args.seconds / len(args.only)
        while time.monotonic() < ends:
            with tempfile.TemporaryDirectory() as folder:
                path = fuzzing.damaged(name, Path(folder), draw)
                answer = read(name, path)
                kind = answer.partition(":")[0]
                counts[kind] += 1
                if kind == "BUG":
                    bugs[answer] += 1
                    if args.keep and bugs[answer] == 1 and path.is_file():
                        args.keep.mkdir(parents=True, exist_ok=True)
                        os.replace(path, args.keep / f"{name}.{len(bugs)}.{path.name}")
        total += counts
        print(row(name, counts), flush=True)
        for bug, count in bugs.most_common(12):
            print(f"{name}: {count} times: {bug}", file=sys.stderr, flush=True)
    print(row("all", total))
    read.close()
    return int(total["BUG"] > 0)


def row(name: str, counts: Counter) -> str:
    return f"| {name} | {counts.total()} | {counts['value']} | {counts['error']} | {counts['BUG']} |"


if __name__ == "__main__":
    sys.exit(main())

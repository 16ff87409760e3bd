"""Many damaged files for every reader: the table of what was tried, and what was wrong.

    python benchmarks/fuzz.py [--seconds 300] [--seed 0] [--only png exr]
    python benchmarks/fuzz.py --guided yaml [--seconds 30]

The files and the properties are those of tests/test_fuzz.py (tests/fuzzing.py): a file is read, or refused with one
line; nothing else is raised, the process lives, takes at most 3 GiB and 20 s.

`--guided` lets atheris (`pip install atheris`) look for files that reach other lines of one reader: of its Python half,
for the C++ libraries are not built for it. It stops at the first that shows something wrong.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / name) for name in (".", "tests"))

from stress import fuzzing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="in all (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (0)")
    parser.add_argument("--only", nargs="+", default=(*fuzzing.VALID, "gbuffers"), help="these readers (all)")
    parser.add_argument("--keep", type=Path, help="a folder for the files that show something wrong")
    parser.add_argument("--guided", choices=sorted(fuzzing.VALID), help="this reader, by what its files reach")
    args = parser.parse_args()
    if args.guided:
        guided(args.guided, args.seconds)
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


def guided(name: str, seconds: float) -> None:
    """Ends the process, with libFuzzer's statistics."""
    import atheris

    with atheris.instrument_imports(include=["drender", "json", "yaml", "numpy.lib", "zipfile"]):
        readers = fuzzing.make_readers()
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder, "corpus"), fuzzing.damaged(name, Path(folder), random.Random(0))
        corpus.mkdir()
        for number in range(len(fuzzing.VALID[name])):
            (corpus / str(number)).write_bytes(fuzzing.valid(name, number)[1])

        def try_one(data: bytes) -> None:
            path.write_bytes(data)
            answer = fuzzing.answer(readers[name], path)
            assert not answer.startswith("BUG"), answer

        atheris.Setup(["fuzz", str(corpus), f"-max_total_time={seconds:.0f}", "-print_final_stats=1"], try_one)
        atheris.Fuzz()


def row(name: str, counts: Counter) -> str:
    return f"| {name} | {counts.total()} | {counts['value']} | {counts['error']} | {counts['BUG']} |"


if __name__ == "__main__":
    sys.exit(main())

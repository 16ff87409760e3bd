"""Feed damaged files to every reader and print a table of the outcomes.

    python tests/stress/fuzz_readers.py [--seconds 300] [--seed 0] [--only png exr]
    python tests/stress/fuzz_readers.py --guided yaml [--seconds 30]

The files and the properties are those of test_fuzz.py, defined in fuzzing.py. A reader must return a valid value or
raise InputError with one line. It must raise nothing else, keep the process alive, and stay within 3 GiB and 20 s.

`--guided` uses coverage-guided fuzzing with atheris (`pip install atheris`) on one reader. Only Python code is
instrumented, since the C++ libraries are not built for it. It stops at the first file that shows a bug.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[n]) for n in (1, 2))

from stress import fuzzing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="total time (300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage (0)")
    parser.add_argument("--only", nargs="+", default=(*fuzzing.VALID, "gbuffers"), help="names of readers (all)")
    parser.add_argument("--keep", type=Path, help="folder for the files that show a bug")
    parser.add_argument("--guided", choices=sorted(fuzzing.VALID), help="reader to fuzz by coverage")
    args = parser.parse_args()
    if args.guided:
        fuzz_by_coverage(args.guided, args.seconds)
    print("| reader | files | read | refused in one line | bugs |\n|---|---|---|---|---|")
    total, reader = Counter(), fuzzing.Reader()
    reader.start()
    for name in args.only:
        counts, bugs = Counter(), Counter()
        rng, deadline = random.Random(f"{args.seed} {name}"), time.monotonic() + args.seconds / len(args.only)
        while time.monotonic() < deadline:
            with tempfile.TemporaryDirectory() as folder:
                path = fuzzing.damaged(name, Path(folder), rng)
                answer = reader(name, path)
                kind = answer.partition(":")[0]
                counts[kind] += 1
                if kind == "BUG":
                    bugs[answer] += 1
                    if args.keep and bugs[answer] == 1 and path.is_file():
                        args.keep.mkdir(parents=True, exist_ok=True)
                        os.replace(path, args.keep / f"{name}.{len(bugs)}.{path.name}")
        total += counts
        print(table_row(name, counts), flush=True)
        for bug, count in bugs.most_common(12):
            print(f"{name}: {count} times: {bug}", file=sys.stderr, flush=True)
    print(table_row("all", total))
    reader.close()
    return int(total["BUG"] > 0)


def fuzz_by_coverage(name: str, seconds: float) -> None:
    """Run libFuzzer on one reader; it ends the process with its statistics."""
    import atheris

    with atheris.instrument_imports(include=["drender", "json", "yaml", "numpy.lib", "zipfile"]):
        readers = fuzzing.make_readers()
    with tempfile.TemporaryDirectory() as folder:
        corpus, path = Path(folder, "corpus"), fuzzing.damaged(name, Path(folder), random.Random(0))
        corpus.mkdir()
        for number in range(len(fuzzing.VALID[name])):
            (corpus / str(number)).write_bytes(fuzzing.valid(name, number)[1])

        def check(data: bytes) -> None:
            path.write_bytes(data)
            answer = fuzzing.answer(readers[name], path)
            assert not answer.startswith("BUG"), answer

        atheris.Setup(["fuzz", str(corpus), f"-max_total_time={seconds:.0f}", "-print_final_stats=1"], check)
        atheris.Fuzz()


def table_row(name: str, counts: Counter) -> str:
    return f"| {name} | {counts.total()} | {counts['value']} | {counts['error']} | {counts['BUG']} |"


if __name__ == "__main__":
    sys.exit(main())

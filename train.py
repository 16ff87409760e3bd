"""Training: `python train.py --config configs/inverse.yaml [key=value or --key value …]`.

Every key of the file can be changed on the command line, dotted: optimizer.learning_rate=1e-4, data.batch=16. The same
command goes on with a run that was stopped.
"""

import dataclasses
import sys
from collections.abc import Iterable

from drender import cli, sharding
from drender.errors import oom_guard
from drender.sharding import cache_compilations
from drender.training import config as training_config
from drender.training.loop import train


def main() -> int:
    options, overrides = split(sys.argv[1:])
    args = parser().parse_args(options)
    config = training_config.read_config(args.config, overrides)
    sharding.join_hosts(args.coordinator, args.num_processes, args.process_id)
    cache_compilations()
    with oom_guard("give a smaller data.batch or data.frames, a larger optimizer.grad_accum_steps, or remat=true"):
        return train(config)


def parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__, usage="%(prog)s --config YAML [key=value …] [--coordinator …]")
    parser.add_argument("--config", required=True, type=cli.path, metavar="YAML", help="the run; see configs/")
    hosts = parser.add_argument_group("several processes", "SLURM, Open MPI and Kubernetes are found without these")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    hosts.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    hosts.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")
    return parser


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words for the parser, and the overrides among them: `key=value`, `--key value` or `--key=value`."""
    keys = {field.name for field in dataclasses.fields(training_config.TrainConfig)}
    options, overrides = [], []
    words = iter(words)
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("-") and equals:
            overrides.append(word)
        elif word.startswith("--") and key.partition(".")[0] in keys:
            overrides.append(f"{key}={value if equals else value_of(word, words)}")
        else:
            options.append(word)
    return options, overrides


def value_of(option: str, words: Iterable[str]) -> str:
    for word in words:
        return word
    parser().error(f"{option} needs a value")


if __name__ == "__main__":
    cli.run(main)

"""Training: `drender train --config small/inverse [key=value or --key value …]`.

Every key of the file can be overridden by its dotted name: optimizer.learning_rate=1e-4, data.batch=16. The same
command resumes an interrupted run.
"""

import dataclasses
import sys

from drender import cli, sharding
from drender.errors import oom_guard
from drender.training import hosts
from drender.training.config import TrainConfig, read_config
from drender.training.loop import train


def main(words: list[str] | None = None, prog: str | None = None) -> int:
    """Train; `words` are the command line's, by default this process's."""
    top = parser(prog)
    options, overrides = split(top, sys.argv[1:] if words is None else words)
    args = top.parse_args(options)
    config = read_config(args.config, overrides)
    if hosts.has_peers(args.num_processes) and not hosts.is_child():
        return hosts.supervise(f"{config.output} keeps its checkpoints: run the same command again on every host")
    sharding.join_hosts(args.coordinator, args.num_processes, args.process_id)
    sharding.cache_compilations()
    with oom_guard("lower data.batch or data.frames, raise optimizer.grad_accum_steps, or set remat=true"):
        return train(config, args.dry_run)


def parser(prog: str | None) -> cli.Parser:
    usage = "%(prog)s --config YAML [key=value …] [--dry-run] [--coordinator …]"
    parser = cli.Parser(prog=prog, description=__doc__, usage=usage)
    config = "the run's file, or the name of a shipped one, such as inverse or small/inverse"
    dry_run = (
        "load everything, compile the step, print its memory, arithmetic and time and what trains, draw the first "
        "batch, and stop"
    )
    parser.add_argument("--config", required=True, type=cli.path, metavar="YAML", help=config)
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    group = parser.add_argument_group("several processes", "not needed under SLURM, Open MPI and Kubernetes")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="index of this process, from 0")
    return parser


def split(parser: cli.Parser, words: list[str]) -> tuple[list[str], list[str]]:
    """Split the command line into the parser's options and overrides: `key=value`, `--key value` or `--key=value`."""
    keys = {field.name for field in dataclasses.fields(TrainConfig)}
    options, overrides = [], []
    remaining = iter(words)
    for word in remaining:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("-") and equals:
            overrides.append(word)
        elif word.startswith("--") and key.partition(".")[0] in keys:
            if not equals and (value := next(remaining, None)) is None:
                parser.error(f"{word} needs a value")
            overrides.append(f"{key}={value}")
        else:
            options.append(word)
    return options, overrides

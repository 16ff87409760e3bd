"""The records of a run: run.json with its configurations and starts, and metrics.jsonl."""

import contextlib
import datetime
import json
import math
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from drender.config import RendererConfig
from drender.errors import InputError, naming
from drender.fields import from_dict, to_dict
from drender.files import expand_home, read_json, write_text
from drender.metrics.image import HIGHER_IS_BETTER
from drender.training.config import TrainConfig

RECORD = "run.json"
METRICS = "metrics.jsonl"


def is_run(path: str | Path) -> bool:
    """Whether a folder is a training run."""
    return (expand_home(path) / RECORD).is_file()


def read_run(path: str | Path) -> tuple[TrainConfig, RendererConfig]:
    """Return the configurations of a run and of its renderer; raise InputError if they cannot be read."""
    record, file = read_record(path), expand_home(path) / RECORD
    with naming(file):
        return from_dict(TrainConfig, record["train"], "train"), from_dict(RendererConfig, record["model"], "model")


def read_record(path: str | Path) -> dict[str, Any]:
    """Return the contents of run.json."""
    file = expand_home(path) / RECORD
    record = {"starts": []} | read_json(file, f"is {path} a training run?")
    if not ({"train", "model"} <= record.keys() and isinstance(record["starts"], list)):
        raise InputError(f"{file}: expected the keys train, model and starts; is {path} a training run?")
    return record


def write_record(
    folder: Path, train: TrainConfig, model: RendererConfig, step: int, changes: list[str]
) -> dict[str, Any]:
    """Write run.json with one more start, after `step`, and its `changes` of options; return the contents."""
    starts = read_record(folder)["starts"] if is_run(folder) else []
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    command, commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git checkout
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    starts.append({"step": step, "time": time, "commit": commit, "changes": changes})
    record = {"train": to_dict(train), "model": to_dict(model), "starts": starts}
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def best_step(lines: Iterable[Mapping[str, Any]], metric: str, steps: Collection[int]) -> int | None:
    """Return the step among `steps` with the best metric by the lines of metrics.jsonl; of equal ones the first."""
    sign = -1 if metric.rpartition("/")[2] in HIGHER_IS_BETTER else 1
    measured = (line for line in lines if line["step"] in steps and not math.isnan(line.get(metric, math.nan)))
    values = [(sign * line[metric], line["step"]) for line in measured]
    return min(values, default=(0, None))[1]


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without those that a killed run left incomplete or damaged."""
    lines = []
    for text in file.read_text(errors="replace").splitlines(keepends=True) if file.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if text.endswith("\n") and isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines

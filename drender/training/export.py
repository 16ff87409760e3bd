"""Export a training run as a checkpoint to sample from."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from drender.checkpoints import orbax
from drender.training import run_dir, run_record
from drender.training.weights import WeightSource


def export(
    run: str | Path,
    destination: str | Path,
    overwrite: bool = False,
    dtype: str | None = None,
    step: int | Literal["last", "best"] = "last",
    log: Callable[[str], None] = print,
) -> None:
    """Write the EMA weights of one of a run's checkpoints, with the frozen components, as a checkpoint.

    Args:
      dtype: of the stored weights; None: as they are, float32 where they were trained.
      step: of the checkpoint; "best": by the run's `keep_best`.
    Raises:
      InputError: the run has no such checkpoint, or `destination` exists or cannot be written.
    """
    orbax.check_destination(destination, overwrite)
    _, model = run_record.read_run(run)
    step = run_dir.resolve_step(run, step)
    source = WeightSource(str(run), step)

    def load(name: str) -> dict:
        return jax.tree.map(lambda x: np.asarray(x, dtype), source.load(name))

    components = {name: functools.partial(load, name) for name in source.components if name in orbax.COMPONENTS}
    orbax.save(destination, model, components, overwrite)
    log(f"wrote {destination}: {', '.join(components)} of {run} after step {step}")

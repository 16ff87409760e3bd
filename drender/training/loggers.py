"""Where the curves and pictures of a run go: TensorBoard always, Weights & Biases on request.

A logger has three methods: `log` adds a point to the curve of each name, `draw` the picture of an evaluation, `close`
writes what is pending. `drender.training.run_dir` writes metrics.jsonl itself.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from drender.errors import InputError, first_line


class TensorBoard:
    """TensorBoard's event files in `folder`; points after `step`, left by a killed run, are hidden."""

    def __init__(self, folder: Path, step: int):
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def draw(self, step: int, picture: Path) -> None:
        self._writer.add_image("evaluation", np.asarray(Image.open(picture)), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, continued whenever the training run is.

    Project, entity, group and mode come from wandb's environment variables (`WANDB_PROJECT`, `WANDB_MODE`, …).

    Args:
      folder: of the training run; its name is the displayed one.
      began: time of the run's first start, which makes the identifier unique.
      config: settings to display.
    Raises:
      InputError: the package is missing, or the service refuses.
    """

    def __init__(self, folder: Path, began: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise InputError("logger wandb: the package wandb is missing; pip install 'drender[wandb]'") from None
        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "drender"),
                name=folder.name,
                id=re.sub(r"\W+", "-", f"{folder.name}-{began}"),
                resume="allow",
                dir=str(folder),
                config=config,
            )
        except Exception as error:
            remedy = "run `wandb login`, set WANDB_MODE=offline, or remove logger"
            raise InputError(f"logger wandb: {first_line(error)}; {remedy}") from error
        # wandb's own counter cannot go back, but a killed run repeats the steps after its last checkpoint.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def draw(self, step: int, picture: Path) -> None:
        self._run.log({"step": step, "evaluation": self._wandb.Image(str(picture))})

    def close(self) -> None:
        self._run.finish()


Logger = TensorBoard | WeightsAndBiases

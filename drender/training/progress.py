"""The metrics, the speed and the log lines of a run, and the signals that stop it."""

import contextlib
import datetime
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping

import jax
from jaxtyping import Array

from drender.errors import InputError
from drender.training import flops
from drender.training.config import TrainConfig
from drender.training.run_dir import RunFolder


class MetricLogger:
    """Collects the metrics of steps, and logs their mean and the speed every `log_every` steps.

    `flops_per_step` is the arithmetic of all processes, without rematerialization.
    """

    def __init__(self, config: TrainConfig, run: RunFolder, flops_per_step: float):
        self.config, self.run, self.flops = config, run, flops_per_step
        peak = flops.peak(jax.devices()[0].device_kind, config.dtype)
        self.peak = peak and peak * jax.device_count()
        self.values: list[dict[str, float]] = []  # since the last log
        self.start, self.waited = time.monotonic(), 0.0
        self._warned = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude a block from the speed."""
        start = time.monotonic()
        yield
        self.start += time.monotonic() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a block as time waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def read(self, step: int, metrics: Mapping[str, Array]) -> int:
        """Wait for a step's metrics; return the signal that asks to stop, or 0; raise InputError if non-finite."""
        values = {name: float(value) for name, value in metrics.items()}
        stop = int(values.pop("stop"))
        if not all(map(math.isfinite, values.values())):
            last, shown = self.run.last, ", ".join(f"{name} {value:g}" for name, value in values.items())
            kept = f"keeps the checkpoint after step {last}" if last else "has no checkpoint yet"
            remedy = "lower optimizer.learning_rate, or check the data"
            raise InputError(f"step {step}: non-finite {shown}; {self.config.output} {kept}; {remedy}")
        if values["gradient_norm"] == 0 and not self._warned:
            self._warned = True
            reason = "no row of the batch reaches the parameters of `trainable`"
            warnings.warn(f"step {step}: the gradient is exactly 0, so nothing trains; {reason}", stacklevel=2)
        self.values.append(values)
        if step % self.config.log_every == 0 or step == self.config.optimizer.steps:
            self.flush(step)
        return stop

    def flush(self, step: int) -> None:
        """Log the mean of the metrics since the last log, and the current learning rate."""
        if not self.values:
            return
        names = sorted(self.values[0], key=lambda name: (name != "loss", name))
        means = {name: sum(values[name] for values in self.values) / len(self.values) for name in names}
        seconds = (time.monotonic() - self.start) / len(self.values)
        means |= {
            "learning_rate": self.values[-1]["learning_rate"],
            "step_seconds": seconds,
            "data_seconds": self.waited / len(self.values),
            "rows_per_second": self.config.data.batch / seconds,
            "tflops_per_second": self.flops / seconds / 1e12,
        }
        if self.peak is not None:
            means["mfu"] = self.flops / seconds / self.peak
        left = datetime.timedelta(seconds=round(seconds * (self.config.optimizer.steps - step)))
        columns = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        log(f"step {step}/{self.config.optimizer.steps}  {columns}  left {left}")
        self.run.log(step, means)
        self.values, self.start, self.waited = [], time.monotonic(), 0.0


class PreemptionGuard:
    """Records SIGTERM and SIGINT instead of exiting; a second Ctrl-C interrupts at once."""

    received = 0

    def __enter__(self) -> "PreemptionGuard":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _record(self, number: int, frame) -> None:
        self.received = number
        log("stopping after this step, which will be saved")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def log(line: str) -> None:
    """Print a line of progress, from the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)

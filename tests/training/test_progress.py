"""The metrics, speed and signals of a run, without any step."""

import dataclasses
import os
import signal
import time

import jax
import pytest
from helpers import smallest
from helpers.training_runs import metrics

from drender.training import flops, progress


def metrics_of(**values: float) -> dict:
    """Return the metrics of a step as the logger reads them."""
    values = {"loss": 1.0, "gradient_norm": 1.0, "learning_rate": 1.0, "stop": 0.0} | values
    return {name: jax.numpy.float32(value) for name, value in values.items()}


@pytest.fixture
def begun(tmp_path):
    """The folder of a run that has begun."""
    with smallest.begin_run(tmp_path / "run") as folder:
        yield folder


def test_a_gradient_of_zero_is_a_warning(begun):
    logger = progress.MetricLogger(begun.config, begun, 0.0)
    with pytest.warns(UserWarning, match="step 1: the gradient is exactly 0, so nothing trains"):
        logger.read(1, metrics_of(gradient_norm=0.0))
    logger.read(2, metrics_of(gradient_norm=0.0))  # warned once


def test_logs_hold_mean_metrics_and_the_current_learning_rate(begun):
    logger = progress.MetricLogger(dataclasses.replace(begun.config, log_every=2), begun, 0.0)
    for step in (1, 2):
        logger.read(step, metrics_of(loss=step, learning_rate=step / 4))
    assert (metrics(begun.path)["loss"], metrics(begun.path)["learning_rate"]) == ({2: 1.5}, {2: 0.5})


def test_a_second_ctrl_c_interrupts_at_once(capsys):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), progress.PreemptionGuard() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
    assert capsys.readouterr().out == "stopping after this step, which will be saved\n"


def test_waiting_for_data_and_the_share_of_the_peak_are_logged(begun, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(flops, "peak", lambda kind, dtype: 10e12 if dtype == "float32" else None)
    logger = progress.MetricLogger(dataclasses.replace(begun.config, log_every=2), begun, 4e12)
    for step in (1, 2):
        with logger.waiting():
            now[0] += 0.25
        now[0] += 0.75
        with logger.paused():
            now[0] += 50
        logger.read(step, metrics_of())
    logged = metrics(begun.path)
    assert (logged["step_seconds"], logged["data_seconds"]) == ({2: 1.0}, {2: 0.25})
    assert logged["tflops_per_second"] == {2: 4.0}
    assert logged["mfu"] == {2: pytest.approx(4 / 10 / jax.device_count())}


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA A100-SXM4-80GB", "float32", 156),
        ("NVIDIA A10G", "bfloat16", 125),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v4", "float32", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks_by_the_names_that_jax_gives(kind, dtype, tera):
    assert flops.peak(kind, dtype) == (tera and tera * 1e12)

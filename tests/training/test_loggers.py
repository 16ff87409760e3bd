"""Loggers: what a run sends to Weights & Biases, with a stand-in for the package."""

import sys
import types

import numpy as np
import pytest
from helpers import smallest

from drender import InputError


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package, and the calls that it received."""
    calls = []

    class Run:
        define_metric = staticmethod(lambda name, step_metric: calls.append(("metric", name, step_metric)))
        log = staticmethod(lambda values: calls.append(("log", values)))
        finish = staticmethod(lambda: calls.append(("finish",)))

    def init(**options):
        calls.append(("init", options))
        return Run()

    module = types.SimpleNamespace(init=init, Image=lambda path: ("image", path), calls=calls)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    return module


def test_curves_and_pictures_reach_wandb_and_resume_one_run(wandb, tmp_path):
    for _ in range(2):
        with smallest.begin_run(tmp_path / "run", logger="wandb") as folder:
            folder.log(3, {"loss": 0.5})
            folder.draw(3, np.zeros((4, 4, 3), np.float32))
    (_, first), metric, log, picture, finish, (_, second) = wandb.calls[:6]
    assert metric == ("metric", "*", "step") and log == ("log", {"step": 3, "loss": 0.5})
    file = str(tmp_path / "run" / "pictures" / "00000003.png")
    assert picture == ("log", {"step": 3, "evaluation": ("image", file)}) and finish == ("finish",)
    assert (first["project"], first["name"], first["resume"]) == ("mine", "run", "allow")
    assert first["id"] == second["id"] and first["id"].startswith("run-2")
    assert first["config"]["optimizer"]["warmup"] == 2


def test_a_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(InputError, match=r"the package wandb is missing; pip install 'drender\[wandb\]'"),
        smallest.begin_run(tmp_path / "run", logger="wandb"),
    ):
        pass


def test_a_service_that_refuses_is_one_line(wandb, tmp_path):
    def refuse(**options):
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    wandb.init = refuse
    with (
        pytest.raises(InputError, match=r"logger wandb: No API key configured\.; run `wandb login`, set WANDB_MODE"),
        smallest.begin_run(tmp_path / "run", logger="wandb"),
    ):
        pass


def test_a_service_that_fails_later_is_a_warning(wandb, tmp_path):
    with smallest.begin_run(tmp_path / "run", logger="wandb") as folder:

        def fail(values):
            raise RuntimeError("gone")

        folder._loggers[1]._run.log = fail
        with pytest.warns(UserWarning, match="curves of WeightsAndBiases: failed \\(gone\\); training continues"):
            folder.log(1, {"loss": 0.5})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'

"""The folder of a run: checkpoints, metrics and pictures on disks that are full or damaged."""

import io
import shutil

import jax
import numpy as np
import pytest
from helpers import smallest
from PIL import Image

from drender import InputError
from drender.training import run_dir, run_record


@pytest.fixture
def begun(tmp_path):
    """A run folder that has begun, and a state to save."""
    params = {"vae.x": jax.numpy.ones(1000)}
    with smallest.begin_run(tmp_path / "run") as folder:
        yield folder, run_dir.TrainState(params, params, params)


def test_a_picture_that_cannot_be_written_is_a_warning(begun):
    folder, _ = begun
    (folder.path / "pictures").touch()
    with pytest.warns(UserWarning, match=r"pictures/00000001\.png: failed \(.*\); training continues"):
        folder.draw(1, np.zeros((4, 4, 3), np.float32))


def test_pictures_reach_tensorboard(tmp_path):
    with smallest.begin_run(tmp_path) as folder:
        folder.draw(1, np.full((4, 4, 3), 0.2, np.float32))
    (events,) = (tmp_path / "tensorboard").iterdir()
    _, signature, png = events.read_bytes().partition(b"\x89PNG")
    assert (np.asarray(Image.open(io.BytesIO(signature + png))) == 51).all()


def test_another_start_reports_and_records_its_changes(tmp_path):
    state = run_dir.TrainState(*[{"vae.x": jax.numpy.ones(4)}] * 3)
    with smallest.begin_run(tmp_path) as folder:
        folder.save(1, state)
    with smallest.begin_run(tmp_path, seed=7, **{"optimizer.learning_rate": 0.5, "data.batch": 2}) as folder:
        pass
    assert folder.changes == ["data.batch (4, now 2)", "optimizer.learning_rate (0.001, now 0.5)", "seed (0, now 7)"]
    first, second = run_record.read_record(tmp_path)["starts"]
    assert (first["step"], first["changes"], second["step"], second["changes"]) == (0, [], 1, folder.changes)


def test_a_full_disk_is_found_before_a_save(begun, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7999))
    with pytest.raises(InputError, match=r"needs 1.2e-05 GB of disk, 8e-06 GB are free; free space and run the same"):
        begun[0].save(1, begun[1])
    assert begun[0].last is None


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: Error writing\nwith more lines")]
)
def test_a_disk_that_fills_during_a_save_is_one_line(begun, monkeypatch, error):
    folder, state = begun
    folder.save(1, state)

    def fail():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(folder._checkpointer, "wait", fail)
        with pytest.raises(InputError, match=r"cannot be written \((No space|RESOURCE_EXHAUSTED)") as raised:
            folder.save(2, state)
    assert "\n" not in str(raised.value)


def test_a_truncated_line_of_metrics_is_dropped(begun):
    folder = begun[0]
    for step in (1, 2):
        folder.log(step, {"loss": 0.5})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    folder.last = 1
    folder.begin()
    assert (folder.path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_run_without_a_checkpoint_has_no_weights(begun):
    with pytest.raises(InputError, match="run: the run has no checkpoint yet"):
        run_dir.resolve_step(begun[0].path)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(tmp_path):
    with smallest.begin_run(tmp_path, save_every=5) as folder:
        folder.log(10, {"loss": 0.5})
    with pytest.raises(InputError, match="its checkpoints are missing, although it has trained 10 steps; bring"):
        smallest.begin_run(tmp_path, save_every=5).__enter__()
    assert run_record.read_metrics(tmp_path / "metrics.jsonl") == [{"step": 10, "loss": 0.5}]
    with smallest.begin_run(tmp_path, save_every=6) as folder:  # killed before its first checkpoint was complete
        assert folder.last is None


# --- keeping ----------------------------------------------------------------------------------------------------------

KEEP = {"save_every": 1, "keep_checkpoints": 1, "evaluation.path": "clips"}


def keep(output, losses, **changes) -> list[int]:
    """Save a checkpoint per loss, each measured after it is saved; return the steps that are left."""
    state = {"vae.x": jax.numpy.ones(4)}
    with smallest.begin_run(output, **KEEP, **changes) as folder:
        first = (folder.last or 0) + 1
        for step, loss in enumerate(losses, first):
            folder.save(step, run_dir.TrainState(state, state, state))
            folder.log(step, {"evaluation/loss/mean": loss, "evaluation/rgb/psnr": -loss})
    return sorted(int(path.name) for path in (output / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    losses = [3.0, 1.0, 2.0, 2.0, 1.5]
    assert keep(tmp_path / "lowest", losses, keep_best="evaluation/loss/mean") == [2, 5]
    assert keep(tmp_path / "highest", losses, keep_best="evaluation/rgb/psnr") == [2, 5]
    assert run_dir.resolve_step(tmp_path / "lowest", "best") == 2
    assert run_dir.resolve_step(tmp_path / "lowest", "last") == run_dir.resolve_step(tmp_path / "lowest") == 5
    # A later start knows the evaluations before it.
    assert keep(tmp_path / "lowest", [1.2, 1.1], keep_best="evaluation/loss/mean") == [2, 7]
    assert keep(tmp_path / "lowest", [0.5, 0.7], keep_best="evaluation/loss/mean") == [8, 9]


def test_the_best_of_the_checkpoints_that_are_left_is_kept(tmp_path):
    assert keep(tmp_path / "late", [1.0, 5.0]) == [2]
    assert keep(tmp_path / "late", [4.0, 4.5, 4.6], keep_best="evaluation/loss/mean") == [3, 5]
    assert run_dir.resolve_step(tmp_path / "late", "best") == 3
    assert keep(tmp_path / "nan", [float("nan"), 1.0, 2.0, 3.0], keep_best="evaluation/loss/mean") == [2, 4]


def test_every_nth_checkpoint_is_kept_for_good(tmp_path):
    assert keep(tmp_path / "run", [1.0] * 7, keep_every=3) == [3, 6, 7]


def test_a_checkpoint_that_is_not_there_is_an_error(tmp_path):
    keep(tmp_path / "run", [1.0, 2.0])
    with pytest.raises(InputError, match="has no checkpoint of step 1; it has 2"):
        run_dir.resolve_step(tmp_path / "run", 1)
    with pytest.raises(InputError, match="the run kept no best checkpoint; train with keep_best, or give a step"):
        run_dir.resolve_step(tmp_path / "run", "best")


def test_a_run_that_trains_is_not_opened_again(tmp_path):
    with smallest.begin_run(tmp_path / "run"):
        with pytest.raises(InputError, match=r"run: process .* is writing there"), smallest.begin_run(tmp_path / "run"):
            pass
        assert run_record.is_run(tmp_path / "run")
    assert not (tmp_path / "run/.lock").exists()


def test_damaged_lines_of_the_metrics_are_dropped(tmp_path):
    lines = ['{"step": 0}\n', "[" * 5000 + "\n", "3\n", '{"step": "x"}\n', '{"steps": 0}\n', "\n", '{"step": 0}']
    with smallest.begin_run(tmp_path / "run") as folder:
        (folder.path / "metrics.jsonl").write_text("".join(lines))
        assert run_record.read_metrics(folder.path / "metrics.jsonl") == [{"step": 0}]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"train": {}}', '{"train": {}, "model": 3, "starts": []}', "[" * 10**5]
)
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: ") as error:
        run_record.read_run(tmp_path)
    assert "\n" not in str(error.value)

"""A run refuses a folder that another process writes, and shares it with the processes that `--process` names."""

import pytest
from helpers.runs import check_one_line, contents

from drender.locks import lock_folder


@pytest.fixture
def arguments(walk, tmp_path):
    return "--input", walk, "--output", tmp_path / "out"


@pytest.mark.parametrize("below", ["", "walk"])
def test_a_run_beside_another_one_is_refused(inverse, arguments, tmp_path, below):
    with lock_folder(tmp_path / "out" / below):
        before = contents(tmp_path / "out")
        check_one_line(inverse(*arguments), f"{tmp_path / 'out' / below}: process", "is writing there")
        assert contents(tmp_path / "out") == before


def test_processes_that_share_a_folder_run_together(inverse, arguments, tmp_path):
    with lock_folder(tmp_path / "out", (1, 2)):
        assert inverse(*arguments, "--process", 0, 2)[0] == 0
    with lock_folder(tmp_path / "out", (0, 2)):
        check_one_line(inverse(*arguments, "--overwrite", "--process", 0, 2), "is writing there")
    assert not [name for name in contents(tmp_path / "out") if ".lock" in name]


def test_finished_results_may_be_looked_at_while_they_are_locked(inverse, arguments, tmp_path):
    assert inverse(*arguments)[0] == 0
    with lock_folder(tmp_path / "out"):
        assert inverse(*arguments)[0] == 0


def test_leftovers_of_a_killed_run_are_removed(inverse, arguments, tmp_path):
    left = ("walk/.0000.0000.rgb.0123abcd.part.png", ".walk.viz.0123abcd.part.mp4", ".walk.contact.0123abcd.part.png")
    (tmp_path / "out/walk").mkdir(parents=True)
    for name in (*left, ".lock", "walk/.lock"):
        (tmp_path / "out" / name).touch()
    assert inverse(*arguments)[0] == 0
    assert not [name for name in contents(tmp_path / "out") if "/." in f"/{name}"]

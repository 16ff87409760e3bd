"""The record of a run: what makes it valid, and when its input files count as unchanged."""

import json
import os
import shutil

import pytest

from drender.files import BLOCK, HASHED_WHOLE
from drender.sampling.record import InputFiles, read_record

VALID = {"settings": {"overlap": 6}, "labels": ["rgb"], "chunks": [0], "finished": True, "fps": 24.0, "inputs": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"settings": 3}, {"settings": {"overlap": -1}}, {"settings": {"overlap": 2.0}}, {"labels": "rgb"},
        {"labels": ["../*"]}, {"chunks": [True]}, {"chunks": [-1]}, {"finished": 1}, {"fps": 0}, {"fps": "24"},
        {"fps": float("nan")}, {"inputs": []},
    ],
)  # fmt: skip
def test_an_invalid_record_counts_as_none(tmp_path, change):
    path = tmp_path / "inverse.json"
    assert read_record(path) == {}
    path.write_text(json.dumps(VALID))
    assert read_record(path) == VALID
    path.write_text(json.dumps(VALID | change))
    assert read_record(path) == {}
    path.write_text(json.dumps(VALID)[:-1])
    assert read_record(path) == {}


def test_copied_and_touched_files_are_unchanged(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_bytes(b"0")
    (tmp_path / "light.hdr").write_bytes(b"1")
    recorded = InputFiles([tmp_path / "a", tmp_path / "light.hdr"]).to_json()
    assert InputFiles([tmp_path / "a", tmp_path / "light.hdr"]).match(recorded)
    shutil.copytree(tmp_path / "a", tmp_path / "copies/b")
    shutil.copy(tmp_path / "light.hdr", tmp_path / "copies")
    assert InputFiles([tmp_path / "copies/b", tmp_path / "copies/light.hdr"]).match(recorded)
    os.utime(tmp_path / "light.hdr", (1, 1))
    assert InputFiles([tmp_path / "a", tmp_path / "light.hdr"]).match(recorded)
    assert not InputFiles([tmp_path / "light.hdr", tmp_path / "a"]).match(recorded)


@pytest.mark.parametrize("size", [1, BLOCK, HASHED_WHOLE + 1])
def test_files_of_other_contents_are_changed(tmp_path, size):
    file = tmp_path / "0.bin"
    file.write_bytes(bytes(size))
    recorded = InputFiles([tmp_path]).to_json()
    for contents in (bytes(size - 1) + b"1", b"1" + bytes(size - 1), bytes(size + 1)):
        file.write_bytes(contents)
        os.utime(file, (1, 1))
        assert not InputFiles([tmp_path]).match(recorded)
    file.write_bytes(bytes(size))
    assert InputFiles([tmp_path]).match(recorded)
    (tmp_path / "1.bin").touch()
    assert not InputFiles([tmp_path]).match(recorded)
    assert not InputFiles([tmp_path]).match({})

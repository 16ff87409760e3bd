"""Bounded readers and temporary files."""

import os
from pathlib import Path

import pytest

from drender import files
from drender.errors import InputError
from drender.files import atomic_write, read_json, remove_partial


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting"),
        ("", "Expecting value"),
        ("[1]", "expected names and values, got list"),
        ("3", "expected names and values, got int"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": [1e999]}', "1e999 is not a finite number"),
        ('{"a": ' + "1" * 5000 + "}", "Exceeds the limit"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_other_files_than_json_objects_are_one_line(tmp_path, content, reason):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"a\.json: unreadable \(.*{reason}.*\); write it again$") as error:
        read_json(path, "write it again")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_json_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"é": [1, -2.5e3, true, null, "x"]}')
    assert read_json(tmp_path / "a.json", "") == {"é": [1, -2500.0, True, None, "x"]}


def test_byte_order_marks_of_windows_are_skipped(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a":\r\n 1}\r\n')
    assert read_json(tmp_path / "a.json", "") == {"a": 1}


def test_devices_pipes_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(InputError, match=f"{path}: unreadable .*{reason}"):
            read_json(path, "again")


def test_huge_files_are_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(InputError, match=rf"more than {files.MAX_TEXT} bytes"):
        read_json(tmp_path / "a.json", "again")


def test_links_to_folders_above_are_passed_over(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "cube.obj").touch()
    for name in ("x", "y", "z"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert files.find_files(tmp_path, (".obj",), "meshes", nested=True) == [tmp_path / "a" / "cube.obj"]


def test_temporary_names_are_unique_and_leftovers_are_removed(tmp_path):
    path = tmp_path / ("a" * 251 + ".txt")  # the longest name
    with atomic_write(path) as first:
        with atomic_write(path) as second:
            assert first != second
            second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first" and os.listdir(tmp_path) == [path.name]
    left = [tmp_path / name for name in (".a.1234abcd.part.txt", ".b.1234abcd.part", ".a.txt")]
    others = [tmp_path / name for name in (".parties", ".a.part", ".movie.mp4.part", "a.1234abcd.part.txt")]
    for file in (*left, *others):
        file.touch()
    remove_partial(tmp_path, tmp_path / "a.txt")
    assert [file.exists() for file in left] == [False, True, True]
    remove_partial(tmp_path)
    assert [file.exists() for file in left] == [False, False, True]
    assert all(file.exists() for file in others)  # which are not of drender
    remove_partial(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "remedy"), [("caf\udce9.png", "rename the file"), ("\udcc3\udcb6.png", "set PYTHONUTF8=1")]
)
def test_names_that_libraries_cannot_open_are_input_errors(tmp_path, name, remedy):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=remedy):
        files.require_file(tmp_path / name)

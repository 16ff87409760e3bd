"""Consoles whose encoding lacks characters of a clip's name."""

import io
import sys

import pytest
from helpers.runs import write_frames

import sample
from drender import cli


def test_a_console_that_cannot_spell_a_name_shows_escapes(models, monkeypatch, tmp_path):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    words = ["inverse", "--checkpoint", models["inverse"], "--input", write_frames(tmp_path / "Größe 大", 1)]
    words += ["--size", "64", "64", "--steps", "1", "--passes", "normal", "--devices", "1"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, words), "--output", str(tmp_path / "out"), "--html"])
    monkeypatch.setattr(sys, "stdout", console)
    with pytest.raises(SystemExit) as stopped:
        cli.run(sample.main)
    assert stopped.value.code == 0
    assert b"Gr\\xf6\\xdfe \\u5927: done" in console.buffer.getvalue()
    assert (tmp_path / "out/Größe 大.viz.mp4").exists()

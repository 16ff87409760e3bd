"""The notebook runs from its first cell to its last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_outputs_are_small():
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.long
def test_every_cell_runs(tmp_path, monkeypatch):
    pytest.importorskip("mitsuba", reason="mitsuba is not installed: pip install -e '.[data]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    names = {}
    for cell in cells():
        if cell.startswith("!"):  # as IPython passes lines to a shell
            for line in cell.splitlines():
                command = line[1:].replace("drender ", "python -m drender ", line.startswith("!drender"))
                words = [sys.executable, *command.split()[1:]]
                done = subprocess.run(words, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        else:
            exec(compile(cell, "cell", "exec"), names)
    assert names["relit"].shape == names["rgb"].shape
    assert "psnr" in done.stdout.lower()

"""The notebook runs from its first cell to its last."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


def as_script() -> str:
    """Return the notebook as a program; lines for the shell run in this interpreter's environment."""
    lines = ["import subprocess"]
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            for line in "".join(cell["source"]).splitlines():
                words = shlex.split(line.removeprefix("!"), comments=True) if line.startswith("!") else []
                if words[:1] == ["drender"]:
                    words = ["python", "-m", *words]
                lines.append(f"subprocess.run({[sys.executable, *words[1:]]}, check=True)" if words else line)
    return "\n".join([*lines, "assert relit.shape == rgb.shape"])


def test_outputs_are_small():
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.long
def test_every_cell_runs(tmp_path):
    pytest.importorskip("mitsuba", reason="mitsuba is not installed: pip install -e '.[data]'")
    path = os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", as_script()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "psnr" in done.stdout.lower()

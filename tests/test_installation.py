"""The editable installation."""

import importlib.metadata
import os
import subprocess
import sys

import pytest


def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """As from the parent of a clone that is named like the package: a `.pth` file is searched with all other paths."""
    try:
        importlib.metadata.distribution("drender")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed: pip install -e .")
    (tmp_path / "drender").mkdir()
    code = "import importlib.util; print(importlib.util.find_spec('drender').origin)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.strip().endswith("drender/__init__.py")

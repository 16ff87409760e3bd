"""Imports run downward only, so that every package can be read without those above it."""

import ast
import re
from pathlib import Path

import pytest

import drender

PACKAGE = Path(drender.__file__).parent
# From the lowest to the highest. A module imports from its own layer's package and from lower layers.
LAYERS = (
    {"errors"},
    {"files", "locks", "fields", "config", "settings", "cli", "assets", "sharding", "diffusion"},
    {"models", "media"},
    {"checkpoints", "lighting"},
    {"renderers", "metrics"},
    {"sampling"},
    {"data"},
    {"training", "synthetic"},
    {"editing"},
    {"app"},
    {"commands"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The loader that training uses does not see the sampler: only the commands connect `data` and `sampling`.
CONNECTS_SAMPLING = {"data/__main__.py", "data/encode.py", "data/label.py"}
FORBIDDEN = {"training": {"sampling", "editing"}, "diffusion": set(LEVEL)}


def imported(path: Path) -> set[str]:
    """Return the names of the packages and top-level modules of drender that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            parts = (node.module or "").split(".")
            if parts[0] == "drender":
                names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("drender.")}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downward(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    above = {name for name in imported(path) - {own} if LEVEL[name] > LEVEL[own] or name in FORBIDDEN.get(own, ())}
    if own == "data" and str(relative) not in CONNECTS_SAMPLING:
        above |= imported(path) & {"sampling"}
    assert not above, f"{relative} imports {', '.join(sorted(above))}, which are above it"


def test_same_level_packages_do_not_import_each_other():
    edges = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own != "__init__":
            edges.setdefault(own, set()).update(imported(path) - {own})
    mutual = [(a, b) for a in edges for b in edges[a] if a < b and a in edges.get(b, ())]
    assert not mutual


def test_architecture_page_names_every_module():
    table = (PACKAGE.parent / "docs" / "architecture.md").read_text().partition("\n## Files\n")[2]
    modules = {path.name for path in PACKAGE.rglob("*.py")} - {"__init__.py", "__main__.py"}
    named = set(re.findall(r"(\w+\.py)`", table))
    assert modules - named == set()
    assert named - modules == set()

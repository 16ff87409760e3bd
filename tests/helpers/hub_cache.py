"""Stand-in for Hugging Face: a repository in the layout of huggingface_hub's cache, which it reads offline."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def install(monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, released: Path, revision: str = "main") -> None:
    """Put a released folder into huggingface_hub's cache as a repository, and let nothing else be looked up."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    for number, file in enumerate(sorted(path for path in released.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / str(number), repository / "snapshots" / COMMIT / file.relative_to(released)
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

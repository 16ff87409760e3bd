"""The record beside a clip's results: what they were made from, and which of their chunks are complete."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from drender.errors import InputError
from drender.files import content_hash, read_json, size_and_time

FIELD_TYPES = {"settings": dict, "labels": list, "chunks": list, "finished": bool}
LABEL = re.compile(r"\w+")  # labels become glob patterns of the files that are deleted


def read_record(path: Path) -> dict:
    """Return the record of an earlier run, or {} if there is none or it is invalid."""
    try:
        record = read_json(path, "run again with --overwrite")
        valid = (
            all(isinstance(record[key], kind) for key, kind in FIELD_TYPES.items())
            and all(LABEL.fullmatch(label) for label in record["labels"])
            and all(map(_is_count, (*record["chunks"], record["settings"].get("overlap", 0))))
            and 1e-3 <= record.get("fps", 1) <= 1e6
            and isinstance(record.get("inputs", {}), dict)
        )
    except (InputError, LookupError, TypeError):
        return {}
    return record if valid else {}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


class InputFiles:
    """The files that results depend on, compared by content; folders stand for all files below them.

    Files are hashed only if their size or modification time has changed since the record was written.
    """

    def __init__(self, paths: Iterable[Path] = ()):
        self._files = []  # and their names, which for files in folders are relative to these
        for path in map(Path, paths):
            if path.is_dir():
                files = sorted(file for file in path.rglob("*") if file.is_file())
                self._files += [(file, str(file.relative_to(path))) for file in files]
            else:
                self._files.append((path, path.name))

    @functools.cached_property
    def state(self) -> str:
        """Return a hash of the files' paths, sizes and modification times."""
        return _digest(json.dumps([str(file.absolute()), *size_and_time(file)]) for file, _ in self._files)

    @functools.cached_property
    def content(self) -> str:
        """Return a hash of the files' names and contents."""
        return _digest(json.dumps([name, content_hash(file, *size_and_time(file))]) for file, name in self._files)

    def match(self, recorded: dict) -> bool:
        """Return whether the files are those of a record's `inputs`."""
        return recorded.get("state") == self.state or recorded.get("content") == self.content

    def to_json(self) -> dict:
        return {"state": self.state, "content": self.content}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

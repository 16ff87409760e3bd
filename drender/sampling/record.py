"""TODO."""

import json
import re
from pathlib import Path

RECORD = {"settings": dict, "labels": list, "chunks": list, "finished": bool}


WORD = re.compile(r"\w+")  # a label, with which files are looked for that are removed


def read_record(path: Path) -> dict:
    """The record of an earlier run; nothing where there is none, or none that can be read."""
    try:
        record = json.loads(path.read_text())
        whole = all(isinstance(record[key], kind) for key, kind in RECORD.items())
        whole = whole and all(isinstance(label, str) and WORD.fullmatch(label) for label in record["labels"])
        whole = whole and all(_is_count(index) for index in record["chunks"])
        whole = whole and _is_count(record["settings"].get("overlap", 0))
        whole = whole and 1e-3 <= record.get("fps", 1) <= 1e6
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return record if whole else {}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31

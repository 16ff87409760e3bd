"""Compare the settings of existing results with those of a run, to tell whether the run continues them."""

import json
from typing import Any

from drender.fields import SHORT


def _as_json(settings: dict) -> dict:
    """Return settings as a JSON file gives them back: lists for tuples, strings for keys."""
    return json.loads(json.dumps(settings))


def differences(before: dict, now: dict) -> list[str]:
    """Describe every setting whose value differs, such as "optimizer.steps (20, now 10)"; none if all are equal.

    Both may be nested, and hold tuples or the lists that JSON makes of them. An absent setting differs from None.
    """
    return _differences(_as_json(before), _as_json(now), "")


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        join = f"{name}." if name else ""
        names = {**now, **before}
        return [x for key in names for x in _differences(before.get(key, "unset"), now.get(key, "unset"), join + key)]
    return [] if before == now else [f"{name} ({SHORT.repr(before)}, now {SHORT.repr(now)})"]

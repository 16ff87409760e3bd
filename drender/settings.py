"""Compare the settings of existing results with those of a run, to tell whether the run continues them."""

import json
from typing import Any

from drender.fields import SHORT


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Describe every setting whose value differs, such as "optimizer.steps (20, now 10)"; none if all are equal.

    Both may be nested, and hold tuples or the lists that JSON makes of them. An absent setting differs from None.

    Args:
      name: of the setting; "" for a whole dict of settings.
    """
    before, now = (json.loads(json.dumps(settings)) for settings in (before, now))  # lists for tuples
    if isinstance(before, dict) and isinstance(now, dict):
        prefix = f"{name}." if name else ""
        pairs = {key: (before.get(key, "unset"), now.get(key, "unset")) for key in {**now, **before}}
        return [line for key, values in pairs.items() for line in differences(*values, prefix + key)]
    return [] if before == now else [f"{name} ({SHORT.repr(before)}, now {SHORT.repr(now)})"]

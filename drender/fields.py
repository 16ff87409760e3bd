"""Fields of frozen dataclasses: their ranges, and their conversion from and to JSON."""

import contextlib
import dataclasses
import math
import operator
import re
import reprlib
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from drender.errors import InputError, naming, unknown_name_error
from drender.files import read_json

# Strings of `bounded` fields.
WORD = re.compile(r"\w[\w.-]{0,63}")
# Shortens values in messages: YAML's aliases let a small file hold a value whose repr is endless.
SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


# --- ranges ----------------------------------------------------------------------------------------------------------

_COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def bounded(
    default: Any = dataclasses.MISSING, *, items: int = 2**16, empty: bool = False, **limits: int | float
) -> Any:
    """Declare the range of a field, which `check_ranges` enforces. None is always allowed.

    Args:
      default: of the field; a dict is copied.
      items: largest number of entries of a tuple or dict.
      empty: a tuple or dict may have no entry.
      limits: of every number in the field: `at_least`, `above`, `at_most` or `below`. Numbers are finite anyway, and
        strings are words: they become names of files.
    """
    factory = {"default_factory": lambda: dict(default)} if isinstance(default, dict) else {"default": default}
    return field(**factory, metadata={"limits": limits, "items": range(int(not empty), items + 1)})


def check_ranges(config: Any, prefix: str = "") -> None:
    """Raise InputError for the first `bounded` value out of range, in a dataclass and those nested in its fields."""
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif "limits" in f.metadata and value is not None:
            _check_value(name, value, **f.metadata)


def _check_value(name: str, value: Any, limits: dict[str, int | float], items: range) -> None:
    if isinstance(value, (tuple, dict)) and len(value) not in items:
        raise InputError(f"{name}: expected {items[0]} to {items[-1]} entries, got {len(value)}")
    entries = value if isinstance(value, tuple) else [*value, *value.values()] if isinstance(value, dict) else [value]
    for entry in entries:
        if isinstance(entry, str):
            if not WORD.fullmatch(entry):
                raise InputError(f"{name}: expected words of letters, digits, '-' and '.', got {SHORT.repr(entry)}")
        elif not (-math.inf < entry < math.inf and all(_COMPARISONS[word](entry, x) for word, x in limits.items())):
            expected = " and ".join(f"{word.replace('_', ' ')} {limit}" for word, limit in limits.items())
            raise InputError(f"{name}: expected {expected or 'a finite number'}, got {SHORT.repr(value)}")


# --- JSON ------------------------------------------------------------------------------------------------------------


def from_dict(cls: type, data: Any, where: str, ignore_unknown: bool = False) -> Any:
    """Build a configuration dataclass from plain JSON values; absent keys take the defaults.

    Args:
      where: file or option that `data` comes from, for messages; "": none.
      ignore_unknown: drop unknown keys, which released files carry, instead of failing.
    Raises:
      InputError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    prefix = where and f"{where}: "
    if not isinstance(data, dict):
        raise InputError(f"{prefix}expected a mapping of names to values, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in data.items():
        if key not in hints:
            if ignore_unknown:
                continue
            raise InputError(f"{prefix}{unknown_name_error('key', str(key), hints)}")
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    for f in dataclasses.fields(cls):
        if f.name not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}missing key {f.name!r}")
    return cls(**values)


def read_config(cls: type, path: str | Path, remedy: str) -> Any:
    """Build a configuration dataclass from a JSON file; InputErrors, also of values out of range, name the file."""
    with naming(path):
        return from_dict(cls, read_json(path, remedy), "")


def to_dict(config: Any) -> dict:
    """Return a configuration as plain JSON values, which `from_dict` reads back."""
    return dataclasses.asdict(config)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Convert a JSON value to the type `hint`, or raise an InputError that names both."""
    if isinstance(value, np.generic):
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        # Only one member of the union takes lists, and only one takes mappings.
        members = [member for member in args if member is not type(None)]
        container = tuple if isinstance(value, (list, tuple)) else dict if isinstance(value, dict) else None
        matching = [member for member in members if typing.get_origin(member) is container]
        return _convert((matching or members)[0], value, where)
    if hint is Any:
        return value
    if origin is Literal:
        if value in args:
            return value
        raise InputError(f"{where}: expected one of {', '.join(map(repr, args))}, got {SHORT.repr(value)}")
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            if args[-1] is not Ellipsis and len(value) != len(args):
                raise InputError(f"{where}: expected {len(args)} values, got {len(value)}: {SHORT.repr(value)}")
            return tuple(_convert(args[0], item, where) for item in value)
    elif origin is dict:
        if isinstance(value, dict):
            return {_convert(args[0], k, where): _convert(args[1], v, where) for k, v in value.items()}
    elif dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where}: expected {hint if origin else hint.__name__}, got {SHORT.repr(value)}")

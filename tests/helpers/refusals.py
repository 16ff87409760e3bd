"""What is said of a bad input."""

from collections.abc import Callable

import pytest

from drender.errors import InputError


def broken(function: Callable, *arguments) -> str:
    """The message of the InputError that a call raises, checked to be one line."""
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)

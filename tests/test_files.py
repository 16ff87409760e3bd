"""Helpers for files and folders."""

import pytest

from drender.files import first_difference


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"seed": 1}, {"seed": 2}, "another seed (1, now 2)"),
        ({}, {"mask": None}, "another mask ('unset', now None)"),
        ({"mask": None}, {}, "another mask (None, now 'unset')"),
    ],
)
def test_first_difference_names_setting_and_values(before, now, expected):
    assert first_difference(before, now) == expected

"""Whether results were made with the same settings."""

import pytest

from drender.settings import differences


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"seed": 1, "size": [8, 8]}, {"seed": 1, "size": (8, 8)}, []),
        ({"seed": 1}, {"seed": 2}, ["seed (1, now 2)"]),
        ({}, {"mask": None}, ["mask ('unset', now None)"]),
        ({"mask": None}, {}, ["mask (None, now 'unset')"]),
        (
            {"optimizer": {"steps": 20, "betas": (0, 1)}, "seed": 0},
            {"optimizer": {"steps": 10, "betas": [0, 1]}, "seed": 7},
            ["seed (0, now 7)", "optimizer.steps (20, now 10)"],
        ),
        ({"lora": {"rank": 4}}, {"lora": None}, ["lora ({'rank': 4}, now None)"]),
    ],
)
def test_differences_name_setting_and_values(before, now, expected):
    assert sorted(differences(before, now)) == sorted(expected)

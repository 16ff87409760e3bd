"""Ranges of fields, and configurations from and to plain JSON values."""

import dataclasses
import json

import pytest

from drender.config import RendererConfig, Sampling, UNetConfig
from drender.errors import InputError
from drender.fields import bounded, check_ranges, from_dict, to_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = bounded(0.5, above=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    count: int | None = bounded(None, at_least=1)
    betas: tuple[float, ...] = bounded((0.9, 0.99), at_least=0, below=1)
    scale: float = bounded(1.0)


@pytest.mark.parametrize(
    "config",
    [Outer(), Outer(Inner(1.0)), Outer(count=1), Outer(count=10**400), Outer(betas=(0.0, 0.5)), Outer(scale=-3.0)],
)
def test_numbers_in_range_pass(config):
    check_ranges(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Outer(Inner(0.0)), "inner.rate: expected above 0 and at most 1, got 0.0"),
        (Outer(Inner(1.5)), "inner.rate: expected above 0 and at most 1, got 1.5"),
        (Outer(count=0), "count: expected at least 1, got 0"),
        (Outer(betas=(0.9, 1.0)), r"betas: expected at least 0 and below 1, got \(0.9, 1.0\)"),
        (Outer(scale=float("nan")), "scale: expected a finite number, got nan"),
        (Outer(scale=float("inf")), "scale: expected a finite number, got inf"),
    ],
)
def test_numbers_out_of_range_are_errors(config, message):
    with pytest.raises(InputError, match=message):
        check_ranges(config)


def test_json_round_trip_is_exact():
    config = RendererConfig("forward", UNetConfig(cross_attention_dim=(1, 2, 3, 4), num_attention_heads=5))
    assert from_dict(RendererConfig, json.loads(json.dumps(to_dict(config))), "here") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nun_steps": 3}, "here: unknown key 'nun_steps'; did you mean 'num_steps'"),
        ({"num_steps": True}, "here: num_steps: expected int, got True"),
        ({"guidance": "high"}, "here: guidance: expected float, got 'high'"),
        ({"sampler": "dpm"}, "here: sampler: expected one of 'euler', 'heun', .*, got 'dpm'"),
    ],
)
def test_bad_values_name_place_type_and_value(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(Sampling, values, "here")

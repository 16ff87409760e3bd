"""Hostile values under every key of every configuration file: a valid configuration or one line, at once."""

import copy
import dataclasses
import functools
import json
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stress import valid_files

from drender import assets
from drender.checkpoints import orbax
from drender.config import EnvEncoderConfig, RendererConfig, SchedulerConfig, UNetConfig, VAEConfig, check_parts
from drender.data.latent_cache import LatentCacheManifest
from drender.errors import InputError
from drender.fields import WORD, from_dict, to_dict
from drender.lighting.light_file import Light
from drender.training.config import EvaluationConfig, LoraConfig, LossConfig, OptimizerConfig, TrainConfig

MODEL = {kind: orbax.load_config(assets.checkpoint(kind)) for kind in ("inverse", "forward")}
VALID = {
    "inverse": (RendererConfig, to_dict(MODEL["inverse"])),
    "forward": (RendererConfig, to_dict(MODEL["forward"])),
    "set": (LatentCacheManifest, valid_files.SET),
    "light": (Light, valid_files.LIGHT),
    "train": (TrainConfig, valid_files.train_values()),
}
NUMBERS = (0, -1, 1, 2, 7, 64, 10**7, 2**31, 2**63, 10**400, -0.5, 0.5, 1e-30, 1e300, math.nan, math.inf)
WORDS = ("", "x", "../../x", "/etc/passwd", "a/b", "a\\b", "nul\0", "\x1b[2J", "\n", "é", "a" * 10_000, "\ud800", "..")
SIMPLE = st.sampled_from((*NUMBERS, *WORDS, None, True, [], {}))
HOSTILE = SIMPLE | st.lists(SIMPLE, max_size=12) | st.dictionaries(st.sampled_from(WORDS), SIMPLE, max_size=3)


def keys(values, path=()):
    """Yield the path of every value below nested dicts."""
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from keys(value, (*path, key))


KEYS = [(name, path) for name, (_, values) in VALID.items() for path in keys(values)]


def changed(values: dict, path: tuple, value) -> dict:
    values = copy.deepcopy(values)
    functools.reduce(lambda branch, key: branch[key], path[:-1], values)[path[-1]] = value
    return values


def check(name: str, values: dict) -> None:
    """Check that values give a configuration within all promises, or one line."""
    try:
        config = from_dict(VALID[name][0], values, "")
        if name in MODEL:
            check_parts(config)
    except InputError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 2000
        return
    json.dumps(to_dict(config))
    if name in MODEL:
        words = (*config.domains, *config.conditions, *(config.env_encoder.in_labels if config.env_encoder else ()))
        assert all(map(WORD.fullmatch, words)) and not any("/" in word or "\0" in word for word in words)
        parts = (config.unet, config.vae, *([config.env_encoder] if config.env_encoder else []))
        assert all(0 < part.num_layers < 2**18 for part in parts)
        scheduler = config.scheduler
        assert 0 < scheduler.sigma_min < scheduler.sigma_max < math.inf and 0 < config.vae.scaling_factor < math.inf
    if name == "set":
        assert 0 < len(config.entries) <= 2**24 and all(map(WORD.fullmatch, config.labels))


@pytest.mark.parametrize(("name", "path"), KEYS, ids=lambda x: x if isinstance(x, str) else ".".join(x))
@given(value=HOSTILE)
@settings(max_examples=10)
def test_hostile_value_under_every_key(name, path, value):
    check(name, changed(VALID[name][1], path, value))


@given(name=st.sampled_from(list(VALID)), data=st.data())
@settings(max_examples=200)
def test_hostile_values_under_several_keys(name, data):
    values = VALID[name][1]
    for path in data.draw(st.lists(st.sampled_from([path for other, path in KEYS if other == name]), max_size=4)):
        value = data.draw(HOSTILE)
        try:
            values = changed(values, path, value)
        except (KeyError, TypeError):  # an earlier change has replaced its parent
            continue
    check(name, values)


@pytest.mark.parametrize("name", VALID)
def test_files_without_changes_are_valid(name):
    assert dataclasses.is_dataclass(from_dict(*VALID[name], "here"))


CLASSES = (
    UNetConfig, VAEConfig, EnvEncoderConfig, SchedulerConfig, RendererConfig, LossConfig, LoraConfig, OptimizerConfig,
    EvaluationConfig,
)  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
def test_every_number_has_a_range(cls):
    hints = typing.get_type_hints(cls)
    numeric = [f for f in dataclasses.fields(cls) if any(kind in str(hints[f.name]) for kind in ("int", "float"))]
    assert not [f.name for f in numeric if "limits" not in f.metadata]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("unet.layers_per_block", 10**7, "unet.layers_per_block: expected at least 1 and at most 64, got "),
        ("unet.norm_num_groups", 0, "unet.norm_num_groups: expected at least 1"),
        ("unet.num_attention_heads", 0, "unet.num_attention_heads: expected at least 1"),
        ("unet.block_out_channels", [], "unet.block_out_channels: expected 1 to 8 entries, got 0"),
        ("vae.block_out_channels", [], "vae.block_out_channels: expected 1 to 8 entries, got 0"),
        ("vae.norm_num_groups", 7, "vae.block_out_channels: expected multiples of norm_num_groups (7)"),
        ("scheduler.sigma_max", math.nan, "scheduler.sigma_max: expected above 0 and at most 1000000.0, got nan"),
        ("scheduler.sigma_min", 800.0, "scheduler.sigma_min: expected less than sigma_max"),
        ("size", [-64, 64], "size: expected at least 1"),
        ("domains", {"../../x": 0}, "domains: expected words of letters, digits, '-' and '.', got '../../x'"),
        ("domains", {"a\x1b[2J": 0}, r"domains: expected words of letters, digits, '-' and '.', got 'a\x1b[2J'"),
        ("unet.in_channels", 9, "unet.in_channels: expected 16, which fits the other networks, got 9"),
        ("domains", {"normal": 10_000}, "domains: expected rows below unet.context_vocab_size"),
    ],
)
def test_message_names_key_range_and_value(key, value, message):
    with pytest.raises(InputError) as error:
        check_parts(from_dict(RendererConfig, changed(VALID["inverse"][1], tuple(key.split(".")), value), ""))
    assert str(error.value).startswith(message)


def test_more_layers_than_arrays_are_refused_before_tracing():
    path, model = assets.checkpoint("inverse"), MODEL["inverse"]
    orbax.check_config(path, model)
    deep = dataclasses.replace(
        model, unet=dataclasses.replace(model.unet, layers_per_block=64, transformer_layers_per_block=64)
    )
    with pytest.raises(InputError, match=r"config\.json: unet has \d+ layers or more, but \d+ arrays are stored"):
        orbax.check_config(path, deep)

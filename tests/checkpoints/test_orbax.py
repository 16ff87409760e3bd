"""Checkpoints: saving and loading are lossless, nothing half-written is ever visible, and errors name the remedy."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drender.checkpoints import orbax
from drender.config import DOMAINS, EnvEncoderConfig, RendererConfig, SchedulerConfig, UNetConfig
from drender.errors import InputError
from drender.models.params import flatten, unflatten

CONFIG = RendererConfig(
    kind="forward",
    unet=UNetConfig(in_channels=24, temporal_cross_attention_dim=None),
    env_encoder=EnvEncoderConfig(),
    scheduler=SchedulerConfig(timestep_spacing="trailing"),
    scale_cond_latents=True,
    domains=DOMAINS | {"irradiance": 6},
)
TREE = {
    "blocks": {
        0: {"conv": {"kernel": np.arange(24, dtype=np.float16).reshape(2, 1, 3, 4), "bias": np.ones(4, np.float32)}},
        10: {"mix_factor": np.asarray([0.5], jnp.bfloat16)},
    },
    "alpha": np.asarray(4, np.float32),
}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), tree)


@pytest.fixture
def saved(tmp_path):
    orbax.save(tmp_path / "saved", CONFIG, {"unet": TREE, "vae": lambda: TREE["blocks"][0]})
    return tmp_path / "saved"


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def test_config_and_component_names_round_trip(saved):
    assert orbax.load_config(saved) == CONFIG
    assert orbax.components(saved) == ["unet", "vae"]
    assert json.loads((saved / "config.json").read_text())["unet"]["in_channels"] == 24


@pytest.mark.parametrize("shapes", [abstract(TREE), None])
def test_parameters_round_trip_bit_for_bit_with_int_keys(saved, shapes):
    assert_same(orbax.load(saved, "unet", shapes), TREE)
    assert_same(orbax.load(saved, "vae"), TREE["blocks"][0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parameters_are_cast_while_loading(saved, dtype):
    loaded = orbax.load(saved, "unet", abstract(TREE), dtype)
    assert_same(loaded, jax.tree.map(lambda x: jnp.asarray(x).astype(dtype), TREE))


def test_jax_arrays_can_be_saved(tmp_path):
    orbax.save(tmp_path / "c", CONFIG, {"unet": jax.tree.map(jnp.asarray, TREE)})
    assert_same(orbax.load(tmp_path / "c", "unet"), TREE)


def test_shardings_of_abstract_tree_place_parameters(saved):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), TREE)
    leaves = jax.tree.leaves(orbax.load(saved, "unet", placed))
    assert {leaf.sharding for leaf in leaves} == {sharding}


names, indices = st.text("abc_", min_size=1, max_size=4), st.integers(0, 30)
branches = lambda inner: st.one_of(st.dictionaries(keys, inner, min_size=1, max_size=3) for keys in (names, indices))
trees = branches(st.recursive(st.integers(), branches, max_leaves=8))


@given(trees)
@settings(deadline=None)
def test_unflatten_inverts_flatten(tree):
    assert unflatten(flatten(tree)) == tree


# --- saving is all or nothing ----------------------------------------------------------------------------------------


def test_existing_folder_is_kept_unless_overwritten(saved):
    with pytest.raises(InputError, match=r"already exists; .* --overwrite"):
        orbax.save(saved, CONFIG, {"unet": {"a": np.ones(3)}})
    orbax.save(saved, CONFIG, {"vae": {"a": np.ones(3, np.float32)}}, overwrite=True)
    assert orbax.components(saved) == ["vae"]
    assert os.listdir(saved.parent) == ["saved"]


def test_other_folders_and_files_are_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("")
    for place in ("photos", "photos/cat.png"):
        with pytest.raises(InputError, match="not a checkpoint"):
            orbax.save(tmp_path / place, CONFIG, {"unet": TREE}, overwrite=True)
    assert (tmp_path / "photos" / "cat.png").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_interruption_keeps_previous_checkpoint(tmp_path, error, overwrite):
    def interrupted():
        raise error

    if overwrite:
        orbax.save(tmp_path / "c", CONFIG, {"vae": TREE})
    with pytest.raises(error):
        orbax.save(tmp_path / "c", CONFIG, {"unet": TREE, "vae": interrupted}, overwrite)
    assert os.listdir(tmp_path) == (["c"] if overwrite else [])
    if overwrite:
        assert_same(orbax.load(tmp_path / "c", "vae"), TREE)


def test_leftovers_of_killed_process_are_removed(saved):
    stale = saved.parent / ".saved.partial"
    (stale / "unet").mkdir(parents=True)
    saved.rename(saved.parent / ".saved.old")  # killed between the two renames
    orbax.save(saved, CONFIG, {"vae": TREE}, overwrite=True)
    assert os.listdir(saved.parent) == ["saved"]
    assert orbax.components(saved) == ["vae"]


def test_failed_replacement_restores_previous_checkpoint(saved, monkeypatch):
    rename = type(saved).rename

    def refuse(path, target):
        if path.name.endswith("partial"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(type(saved), "rename", refuse)
    with pytest.raises(InputError, match="cannot be written"):
        orbax.save(saved, CONFIG, {"vae": TREE}, overwrite=True)
    assert os.listdir(saved.parent) == ["saved"]
    assert orbax.components(saved) == ["unet", "vae"]


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(InputError, match=r"needs .* GB of disk, 1e-08 GB are free; free space") as caught:
        orbax.save(tmp_path / "c", CONFIG, {"unet": TREE})
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_disk_that_fills_up_while_writing_is_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: no space\nmore lines")

    monkeypatch.setattr(orbax.ocp, "save_async", full)
    with pytest.raises(InputError, match="RESOURCE_EXHAUSTED: no space"):
        orbax.save(tmp_path / "c", CONFIG, {"unet": TREE})
    assert os.listdir(tmp_path) == []


def test_unwritable_destination_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*file"):
        orbax.save(tmp_path / "file" / "c", CONFIG, {"unet": TREE})


# --- errors of loading -----------------------------------------------------------------------------------------------


def test_other_folders_are_not_loaded(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        orbax.load_config(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a drender checkpoint"):
        orbax.load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: unreadable"):
        orbax.load_config(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(InputError, match=r"config\.json: unknown key 'hidden_size'"):
        orbax.load_config(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match=r"convert it first: drender convert"):
        orbax.load_config(tmp_path)


def test_missing_component_lists_existing_ones(saved):
    with pytest.raises(InputError, match="no component 'lora'; it has unet, vae"):
        orbax.load(saved, "lora")


def test_misshapen_parameters_are_named_with_both_shapes(saved):
    other = TREE | {"alpha": np.ones(2)}
    with pytest.raises(InputError, match=r"alpha: expected \(2,\), got \(\) \(1 of 4 parameters differ\)"):
        orbax.load(saved, "unet", abstract(other))
    with pytest.raises(InputError, match=r"beta: expected \(\), got none"):
        orbax.load(saved, "unet", abstract(TREE | {"beta": TREE["alpha"]}))
    with pytest.raises(InputError, match=r"alpha: expected no such parameter, got \(\)"):
        orbax.load(saved, "unet", abstract({"blocks": TREE["blocks"]}))


def test_damaged_component_is_named(saved):
    data = max((file for file in (saved / "unet").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match="unet: damaged"):
        orbax.load(saved, "unet")
    shutil.rmtree(saved / "unet")
    (saved / "unet").mkdir()
    with pytest.raises(InputError, match="unet: damaged"):
        orbax.load(saved, "unet")

"""Sets of cached latents: what is in them, how they are resumed and shared, and what is said of broken ones."""

import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import small, smallest
from helpers.encoded import encode_clips
from helpers.tiny_clips import LABELS, write_clip, write_noise, write_sky

from drender.checkpoints import orbax
from drender.config import ENVIRONMENT_LABELS
from drender.data import encode as encoding
from drender.data.augment import Augmentation, AugmentationConfig
from drender.data.clips import open_clips
from drender.data.latent_cache import LatentDataset, fingerprint, missing_entries, read_manifest
from drender.errors import InputError
from drender.lighting.light_file import Light
from drender.locks import lock_folder
from drender.media.gbuffers import frame_path
from drender.models.vae import VAE
from drender.renderers.base import Renderer
from drender.training import losses
from drender.training.evaluation import Evaluation
from drender.training.run_dir import RunFolder

pytestmark = pytest.mark.usefixtures("small_cubes")

ALL = (*LABELS, *ENVIRONMENT_LABELS)
SIZES = {"size": (8, 8), "environment_size": (8, 8)}


load = functools.cache(encoding.Encoder.load)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """What is compiled for one test serves the next."""
    monkeypatch.setattr(encoding.Encoder, "load", load)


@pytest.fixture
def clips(tmp_path) -> Path:
    """Three clips of noise under one sky, in which nothing stands still."""
    write_sky(tmp_path / "sky.exr")
    for i in range(3):
        light = Light("../../sky.exr", strength=1.0 + i, angles=(0.5, 1.0))
        write_noise(tmp_path / "clips" / f"clip{i}", seed=i, light=light)
    return tmp_path / "clips"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a complete set."""
    latents = LatentDataset(str(folder), read_manifest(folder).labels)
    return {label: array.read().result() for label, array in latents.arrays.items()}


# --- what a set holds -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cached_latents_match_the_renderer(clips, vae, tmp_path):
    encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    renderer = Renderer(small.forward_config(), {"vae": small.random_params(VAE, small.VAE)})
    stored = read_all(tmp_path / "set")
    for i, clip in enumerate(open_clips(clips, ALL)):
        pixels = {label: clip.read(label, slice(None), (8, 8)) for label in LABELS} | clip.environment((8, 8))
        for label in ALL:
            expected = np.asarray(renderer.encode_images(np.asarray(pixels[label])))
            assert stored[label].dtype == np.float16 and np.abs(expected).max() > 0.1
            np.testing.assert_allclose(stored[label][i], expected, rtol=2**-11, atol=1e-4)


@pytest.mark.slow
def test_all_variants_but_the_first_are_augmented(clips, vae, tmp_path):
    ranges = AugmentationConfig(0.5, (0.5, 2.0), 30.0)
    encode_clips(clips, tmp_path / "set", vae, ALL, variants=3, augmentation=ranges, seed=7, **SIZES)
    manifest, stored = read_manifest(tmp_path / "set"), read_all(tmp_path / "set")
    assert manifest.entries == [(f"clip{i}", 0, variant) for i in range(3) for variant in range(3)]
    encoder = encoding.Encoder.load(vae, None, jax.local_devices()[0])
    opened = {clip.name: clip for clip in open_clips(clips, ALL)}
    drawn = [ranges.draw(np.random.default_rng((7, index))) for index in range(9)]
    assert len({x.mirrored for x in drawn}) == 2
    for index, (name, _, variant) in enumerate(manifest.entries):
        augmentation = drawn[index] if variant else Augmentation()
        images = opened[name].images(ALL, slice(0, 2), (8, 8), (8, 8), augmentation)
        for label in ("rgb", "normal", "env_log"):
            expected = np.asarray(encoder.encode_images(np.ascontiguousarray(images[label])))
            np.testing.assert_allclose(stored[label][index], expected, rtol=2**-11, atol=1e-4)


def test_windows_cover_long_clips(vae, tmp_path):
    write_clip(tmp_path / "clips" / "a", chunks=(4,))
    write_clip(tmp_path / "clips" / "b", chunks=(5, 3, 4))
    write_clip(tmp_path / "clips" / "c", chunks=(11,))
    run = functools.partial(encode_clips, tmp_path / "clips", labels=("depth",), checkpoint=vae, size=(2, 2))
    with pytest.warns(UserWarning, match=r"entries have 4 frames, since clip 'a' has no more; give --frames, and"):
        run(destination=tmp_path / "own")
    manifest = read_manifest(tmp_path / "own")
    assert manifest.frames == 4  # as many as every clip has
    assert manifest.clips == {"a": (0,), "b": (0, 1, 8), "c": (0, 4, 7)}
    run(destination=tmp_path / "two", frames=2)
    assert read_manifest(tmp_path / "two").clips == {"a": (0, 2), "b": (0, 2, 3, 5, 6, 8, 10), "c": (0, 2, 4, 6, 8, 9)}
    with pytest.raises(InputError, match="clip 'a' has 4 frames, fewer than 5; lower --frames"):
        run(destination=tmp_path / "five", frames=5)


def test_the_last_window_may_overlap_the_previous_one(vae, tmp_path):
    write_noise(tmp_path / "clips" / "a", frames=5, labels=("rgb",))
    encode_clips(tmp_path / "clips", tmp_path / "set", vae, ("rgb",), size=(8, 8), frames=2)
    assert read_manifest(tmp_path / "set").clips == {"a": (0, 2, 3)}
    stored = read_all(tmp_path / "set")["rgb"]
    np.testing.assert_array_equal(stored[1, 1], stored[2, 0])
    assert len({frame.tobytes() for frame in stored.reshape(6, -1)}) == 5


def test_windows_and_frames_are_drawn_from_the_clip(vae, tmp_path):
    for name, frames in (("a", 4), ("b", 5)):
        write_noise(tmp_path / "clips" / name, frames, labels=("rgb", "depth"), seed=frames)
    encode_clips(tmp_path / "clips", tmp_path / "set", vae, ("rgb", "depth"), size=(8, 8), frames=3)
    latents, rng = LatentDataset(str(tmp_path / "set"), ("rgb",)), np.random.default_rng(0)
    stored = read_all(tmp_path / "set")["rgb"]
    assert len(latents) == 2 and stored.shape == (4, 3, 4, 4, 4)
    seen = {latents.draw(1, 2, ("rgb",), rng)["rgb"].tobytes() for _ in range(50)}
    assert len(seen) == 4  # frames 0 1 2 and 2 3 4, two of each
    assert seen == {stored[entry, start : start + 2].tobytes() for entry in (2, 3) for start in (0, 1)}
    with pytest.raises(InputError, match=r"has 3 frames per entry, fewer than 4; lower data\.frames"):
        latents.require(4)


# --- stopped and shared -----------------------------------------------------------------------------------------------


def test_an_interrupted_run_resumes_to_identical_bytes(clips, vae, tmp_path, monkeypatch):
    options = {"variants": 2, "augmentation": AugmentationConfig(0.5, (0.5, 2.0), 30.0), **SIZES}
    encode_clips(clips, tmp_path / "whole", vae, ALL, **options)
    write = encoding._Writer.write

    def stopped(writer, index):
        if index == 3:
            raise KeyboardInterrupt
        write(writer, index)

    monkeypatch.setattr(encoding._Writer, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode_clips(clips, tmp_path / "set", vae, ALL, num_workers=1, **options)
    monkeypatch.undo()
    absent = missing_entries(tmp_path / "set", read_manifest(tmp_path / "set"))
    assert 3 in absent and len(absent) < 6
    with pytest.raises(InputError, match=f"{len(absent)} of 6 entries are not encoded yet; run the same"):
        LatentDataset(str(tmp_path / "set"), ("rgb",))
    # As a process that was killed between two labels leaves an entry.
    (tmp_path / "set" / "normal" / "c.0.0.0.0.0").unlink()
    encode_clips(clips, tmp_path / "set", vae, ALL, **options)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_existing_entries_are_not_encoded_again(clips, vae, tmp_path, monkeypatch, capsys):
    encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    monkeypatch.setattr(encoding._Writer, "write", lambda *_: pytest.fail("encoded again"))
    capsys.readouterr()
    encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    assert "0 of 3 entries to encode" in capsys.readouterr().out


@pytest.mark.slow
def test_progress_is_shown_outside_a_terminal(monkeypatch, capsys):
    class StandIn(encoding._Writer):
        __init__, write, folder, manifest = object.__init__, lambda *_: None, Path("set"), None

    missing = iter([{1, 2}, set()])
    monkeypatch.setattr(encoding, "missing_entries", lambda *_: next(missing))
    encoding._write_missing(StandIn(), range(3), 1)
    shown = capsys.readouterr()
    assert shown.out == "set: 2 of 3 entries to encode\nset: complete\n"
    assert "1/3" in shown.err and "3/3" in shown.err


def test_processes_and_devices_share_a_set(clips, vae, tmp_path, capsys):
    options = {"variants": 2, "augmentation": AugmentationConfig(1.0), **SIZES}
    encode_clips(clips, tmp_path / "one", vae, ALL, **options)
    capsys.readouterr()
    encode_clips(clips, tmp_path / "two", vae, ALL, **options, process=(1, 2))
    assert "3 entries left to other processes" in capsys.readouterr().out
    assert missing_entries(tmp_path / "two", read_manifest(tmp_path / "two")) == {0, 2, 4}
    encode_clips(clips, tmp_path / "two", vae, ALL, **options, process=(0, 2), devices=jax.local_devices()[:2])
    assert "complete" in capsys.readouterr().out
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_set_that_another_process_writes_is_refused(clips, vae, tmp_path):
    with lock_folder(tmp_path / "set"), pytest.raises(InputError, match=r"set: process .* is writing there"):
        encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    assert not (tmp_path / "set").exists()


def test_a_damaged_clip_is_named(clips, vae, tmp_path):
    file = frame_path(clips / "clip1", 0, 1, "normal")
    sound = file.read_bytes()
    file.write_bytes(sound[:-20])
    with pytest.raises(InputError, match=f"clip 'clip1': {file}: truncated or damaged"):
        encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    assert not list((tmp_path / "set").glob("*/c.1.*"))
    file.write_bytes(sound)
    encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    assert len(LatentDataset(str(tmp_path / "set"), ALL)) == 3


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_set_of_other_contents_is_kept(clips, vae, tmp_path):
    run = functools.partial(encode_clips, clips, tmp_path / "set", vae)
    run(("rgb",), size=(8, 8))
    before = files(tmp_path / "set")
    with pytest.raises(
        InputError, match=r"holds latents made with another size \(\[8, 8\], now \[4, 8\]\); give another"
    ):
        run(("rgb",), size=(4, 8))
    with pytest.raises(InputError, match="another labels"):
        run(("rgb", "depth"), size=(8, 8))
    other = orbax.load(vae, "vae")
    other["encoder"]["conv_in"]["bias"] += 1
    orbax.save(tmp_path / "other", small.forward_config(), {"vae": other})
    with pytest.raises(InputError, match="another weights"):
        encode_clips(clips, tmp_path / "set", tmp_path / "other", ("rgb",), size=(8, 8))
    write_noise(clips / "clip3")
    with pytest.raises(InputError, match=r"another clips\.clip3"):
        run(("rgb",), size=(8, 8))
    assert files(tmp_path / "set") == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"full holds other files and no set\.json"):
        encode_clips(clips, tmp_path / "full", vae, ("rgb",), size=(8, 8))
    assert files(tmp_path / "full") == {"thesis.tex": b""}


def test_bad_sets(clips, vae, tmp_path):
    folder = tmp_path / "set"
    encode_clips(clips, folder, vae, ("rgb", "depth"), size=(8, 8))
    with pytest.raises(InputError, match="has no latents of 'normal'; it has rgb, depth"):
        LatentDataset(str(folder), ("rgb", "normal"))
    chunk = folder / "rgb" / "c.2.0.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    latents = LatentDataset(str(folder), ("rgb", "depth"))
    with pytest.raises(InputError, match=f"{chunk}.*; remove that file and encode the set again"):
        latents.draw(2, 1, ("rgb",), np.random.default_rng(0))
    chunk.unlink()
    with pytest.raises(InputError, match="1 of 3 entries are not encoded yet"):
        LatentDataset(str(folder), ("depth",))
    encode_clips(clips, folder, vae, ("rgb", "depth"), size=(8, 8))
    (folder / "rgb" / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"rgb: no array of this set \(.*\); encode it again"):
        LatentDataset(str(folder), ("rgb",))
    shutil.rmtree(folder / "rgb")
    with pytest.raises(InputError, match="3 of 3 entries"):
        LatentDataset(str(folder), ("rgb",))
    values = json.loads((folder / "set.json").read_text())
    (folder / "set.json").write_text(json.dumps(values | {"frame": 3}))
    with pytest.raises(InputError, match=r"set\.json: unknown key 'frame'; did you mean 'frames'"):
        read_manifest(folder)
    (folder / "set.json").write_text("{")
    with pytest.raises(InputError, match=r"set\.json: unreadable"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 7)}, "size: expected sides that are multiples of 2, got 8 7"),
        ({"size": (0, 8)}, "size: expected sides that are multiples of 2, got 0 8"),
        ({"environment_size": (3, 8)}, "environment size: expected sides that are multiples of 2, got 3 8"),
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"variants": 0}, "variants: expected at least 1, got 0"),
        ({"num_workers": 0}, "num_workers: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"process": (2, 2)}, "process: expected an index from 0 and a larger count, got 2 2"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
    ],
)
def test_bad_options(clips, vae, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        encode_clips(clips, tmp_path / "set", vae, ("rgb",), **({"size": (8, 8)} | options))
    assert not (tmp_path / "set").exists()


def test_missing_things_are_named(clips, vae, tmp_path):
    with pytest.raises(UserWarning, match="diffuse_albedo is left out, because clip 'clip0' has none; add its files"):
        encode_clips(clips, tmp_path / "set", vae, ("rgb", "diffuse_albedo"), size=(8, 8))
    (clips / "clip1" / "light.json").unlink()
    with pytest.raises(InputError, match=r"clip 'clip1' has no light\.json"):
        encode_clips(clips, tmp_path / "set", vae, ("rgb", "env_ldr"), size=(8, 8))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        encode_clips(clips, tmp_path / "file", vae, ("rgb",), size=(8, 8))


def test_non_finite_latents_are_refused(clips, tmp_path):
    params = small.random_params(VAE, small.VAE)
    params["quant_conv"]["bias"] = params["quant_conv"]["bias"] + 1e5
    orbax.save(tmp_path / "vae", small.forward_config(), {"vae": params})
    with pytest.raises(InputError, match="clip 'clip0': the latents of its 'rgb' are non-finite"):
        encode_clips(clips, tmp_path / "set", tmp_path / "vae", ("rgb",), size=(8, 8), num_workers=1)


def test_the_fingerprint_covers_the_encoder_only():
    params = small.random_params(VAE, small.VAE)
    print_of = fingerprint(params)
    changed = jax.tree.map(lambda x: x, params)
    changed["decoder"]["conv_in"]["bias"] = changed["decoder"]["conv_in"]["bias"] + 1
    assert fingerprint(changed) == print_of
    half = jax.tree.map(lambda x: x.astype(np.float16), params)
    assert fingerprint(jax.tree.map(lambda x: x.astype(np.float32), half)) == fingerprint(half) != print_of
    for name in ("encoder", "quant_conv"):
        other = small.random_params(VAE, small.VAE, seed=1)
        assert fingerprint(params | {name: other[name]}) != print_of


# --- what learns from it ----------------------------------------------------------------------------------------------


def test_evaluation_uses_the_size_of_cached_latents(clips, vae, tmp_path):
    encode_clips(clips, tmp_path / "set", vae, ALL, **SIZES)
    config = smallest.config("inverse", tmp_path / "set", tmp_path / "run", **{"data.size": [512, 512]})
    model = losses.LossSetup(small.inverse_config(), config.loss, latent=True)
    assert Evaluation(config, model, RunFolder(config, model.config)).size == (8, 8)

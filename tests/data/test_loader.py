"""The rows of training data: objectives, mixing, augmentation, and cached latents."""

import collections
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from helpers.rows import FORWARD, INVERSE, config, origin
from helpers.tiny_clips import LABELS, write_clip

from drender.config import CONDITIONS, ENVIRONMENT_LABELS, EnvEncoderConfig, VAEConfig
from drender.data.clips import open_clips
from drender.data.config import Source
from drender.data.latent_cache import LatentDataset, read_manifest
from drender.data.loader import TrainingData
from drender.errors import InputError
from drender.media.gbuffers import frame_path
from drender.media.images import write_png

pytestmark = pytest.mark.usefixtures("small_cubes")

# --- rows -------------------------------------------------------------------------------------------------------------


def test_inverse_rows(clips):
    data = TrainingData(config(Source(str(clips), real=True), frames=3), "inverse", INVERSE, rows=4, seed=0)
    assert not data.latent and data.fingerprint is None
    passes = set()
    for batch in itertools.islice(data.batches(), 6):
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            "rgb": ((4, 3, 2, 2, 3), np.float32),
            "buffer": ((4, 3, 2, 2, 3), np.float32),
            "domain": ((4,), np.int32),
            "image_only": ((4,), np.bool_),
            "real": ((4,), np.bool_),
        }
        assert batch["real"].all() and not batch["image_only"].any()
        for rgb, buffer, domain in zip(batch["rgb"], batch["buffer"], batch["domain"], strict=True):
            found = [origin(frame) for frame in buffer]
            label, clip, first = found[0]
            passes.add(label)
            assert INVERSE.domains[label] == domain
            assert found == [(label, clip, first + i) for i in range(3)]  # consecutive
            assert [origin(frame) for frame in rgb] == [("rgb", clip, first + i) for i in range(3)]
    assert passes == set(LABELS[1:])
    assert data.abstract_batch() == {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


def test_forward_and_environment_rows(lit):
    (first, second) = open_clips(lit, LABELS)
    options = config(lit, size=(16, 16), frames=2)
    model = dataclasses.replace(FORWARD, conditions=("depth", "normal"))
    batch = next(TrainingData(options, "forward", model, rows=2, seed=0).batches())
    environment = next(TrainingData(options, "environment", model, rows=2, seed=0).batches())
    assert batch.keys() == {"rgb", "conditions", "environment", "image_only", "real"}
    assert environment.keys() == {"environment"}
    assert batch["environment"].shape == environment["environment"].shape == (2, 3, 2, 16, 16, 3)
    everything = slice(None)
    for i, rgb in enumerate(batch["rgb"]):
        clip = next(clip for clip in (first, second) if (clip.read("rgb", everything, (16, 16)) == rgb).all())
        for j, label in enumerate(model.conditions):
            np.testing.assert_array_equal(batch["conditions"][i, j], clip.read(label, everything, (16, 16)))
        for j, label in enumerate(ENVIRONMENT_LABELS):
            np.testing.assert_array_equal(batch["environment"][i, j], clip.environment((16, 16))[label])
    # The same stream of clips: what is drawn does not depend on the objective.
    np.testing.assert_array_equal(batch["environment"], environment["environment"])


def test_vae_rows_are_of_all_kinds(clips):
    data = TrainingData(config(clips, frames=2, passes=("depth", "normal")), "vae", FORWARD, rows=8, seed=0)
    rows = [row for batch in itertools.islice(data.batches(), 30) for row in batch["images"]]
    assert rows[0].shape == (2, 2, 2, 3)
    counts = collections.Counter(origin(row[0])[0] for row in rows)
    assert counts.keys() == {"rgb", "depth", "normal"} and min(counts.values()) > 50


def test_windows_are_drawn_from_everywhere(clips):
    data = TrainingData(config(clips, frames=3), "vae", FORWARD, rows=90, seed=0)
    firsts = collections.Counter(origin(row[0])[2] for row in next(data.batches())["images"])
    assert firsts.keys() == {0, 1, 2} and min(firsts.values()) > 15


def test_every_clip_is_drawn_once_before_any_repeats(clips):
    rows = next(TrainingData(config(clips, frames=1), "vae", FORWARD, rows=18, seed=0).batches())["images"]
    epochs = np.reshape([origin(row[0])[1] for row in rows], (3, 6))
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(6), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_sources_are_mixed_by_weight(clips, tmp_path):
    for i in range(3):
        write_clip(tmp_path / "real" / f"clip{i}", clip=10 + i, chunks=(2,))
    mixed = config(Source(str(clips), weight=3.0), Source(str(tmp_path / "real"), weight=1.0, real=True), frames=1)
    data = TrainingData(mixed, "inverse", INVERSE, rows=40, seed=3)
    for batch in itertools.islice(data.batches(), 3):
        clip = np.array([origin(row[0])[1] for row in batch["rgb"]])
        np.testing.assert_array_equal(batch["real"], clip >= 10)
        assert batch["real"].sum() == 10  # to the row: sources are interleaved, not drawn


@pytest.mark.slow
def test_a_pass_listed_twice_is_drawn_twice_as_often(clips):
    passes = config(Source(str(clips)), frames=1, passes=("normal", "normal", "depth"))
    (batch,) = itertools.islice(TrainingData(passes, "inverse", INVERSE, rows=300, seed=0).batches(), 1)
    assert 180 < (batch["domain"] == INVERSE.domains["normal"]).sum() < 220


def test_image_rows_are_of_unrelated_clips(clips):
    data = TrainingData(config(clips, frames=4, image_fraction=0.5), "inverse", INVERSE, rows=100, seed=0)
    batch = next(data.batches())
    assert 30 < batch["image_only"].sum() < 70
    for rgb, buffer, image_only in zip(batch["rgb"], batch["buffer"], batch["image_only"], strict=True):
        found = [origin(frame)[1:] for frame in rgb]
        assert found == [origin(frame)[1:] for frame in buffer]
        assert len({clip for clip, _ in found}) == (4 if image_only else 1)
        assert len({origin(frame)[0] for frame in buffer}) == 1
    # Images need no long clips; of fewer clips than frames, some come twice.
    rows = TrainingData(config(clips, frames=8, image_fraction=1.0), "inverse", INVERSE, rows=2, seed=0)
    assert {len({origin(frame)[1] for frame in row}) for row in next(rows.batches())["rgb"]} == {6}


def test_flips_and_exposures_are_those_of_the_configuration(tmp_path):
    ramp = np.broadcast_to(np.float32([[0.2], [0.4]]), (2, 2, 3))
    write_png(frame_path(tmp_path / "clips" / "a", 0, 0, "rgb"), ramp, bits=16)
    write_png(frame_path(tmp_path / "clips" / "a", 0, 0, "depth"), ramp, bits=16)
    flipped = config(tmp_path / "clips", frames=1, flip=0.5, passes=("depth",), exposure_range=(0.5, 0.9))
    batch = next(TrainingData(flipped, "inverse", INVERSE, rows=100, seed=0).batches())
    mirrored = batch["rgb"][:, 0, 0, 0, 0] > batch["rgb"][:, 0, 0, 1, 0]
    np.testing.assert_array_equal(mirrored, batch["buffer"][:, 0, 0, 0, 0] > batch["buffer"][:, 0, 0, 1, 0])
    assert 35 < mirrored.sum() < 65
    assert (batch["rgb"].max(axis=(1, 2, 3, 4)) < 0.39).all() and (batch["buffer"].max(axis=(1, 2, 3, 4)) > 0.39).all()


def test_only_an_estimated_light_is_turned(lit):
    options = {"size": (16, 16), "frames": 1, "rotation": 90.0}
    both = config(Source(str(lit)), Source(str(lit), real=True), **options)
    batch = next(TrainingData(both, "forward", FORWARD, rows=4, seed=0).batches())
    exact = [clip.environment((16, 16), [0])["env_log"] for clip in open_clips(lit, LABELS)]
    for environment, real in zip(batch["environment"], batch["real"], strict=True):
        assert any((environment[1] == one).all() for one in exact) != real
    with pytest.raises(InputError, match=r"data\.rotation: expected 0 without real sources, got 90\.0"):
        TrainingData(config(lit, **options), "forward", FORWARD, rows=4, seed=0)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_cached_latents_replace_pixels(cached):
    data = TrainingData(config(cached, frames=1), "forward", FORWARD, rows=3, seed=0)
    assert data.latent and data.fingerprint == read_manifest(cached).weights
    batch = next(data.batches())
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "rgb": ((3, 1, 8, 8, 4), np.float16),
        "conditions": ((3, 5, 1, 8, 8, 4), np.float16),
        "environment": ((3, 3, 1, 8, 8, 4), np.float16),
        "image_only": ((3,), np.bool_),
        "real": ((3,), np.bool_),
    }
    arrays = LatentDataset(str(cached), (*LABELS, *ENVIRONMENT_LABELS)).arrays
    stored = {label: array.read().result().reshape(4, 8, 8, 4) for label, array in arrays.items()}  # of all frames
    for rgb, conditions, light in zip(batch["rgb"], batch["conditions"], batch["environment"], strict=True):
        (place,) = [i for i in range(4) if (stored["rgb"][i] == rgb[0]).all()]
        for labels, found in ((CONDITIONS, conditions), (ENVIRONMENT_LABELS, light)):
            np.testing.assert_array_equal(found[:, 0], np.stack([stored[label][place] for label in labels]))
    rows = next(
        TrainingData(config(cached, frames=2, image_fraction=1.0), "inverse", INVERSE, rows=2, seed=0).batches()
    )
    assert rows["image_only"].all() and rows["buffer"].shape == (2, 2, 8, 8, 4)


def test_unsuitable_latents_are_refused(cached, lit, vae, tmp_path):
    def refusal(*sources, objective="inverse", model=INVERSE, **options):
        with pytest.raises(InputError) as error:
            TrainingData(config(*(sources or [cached]), **({"frames": 2} | options)), objective, model, rows=1, seed=0)
        return str(error.value)

    wide = dataclasses.replace(INVERSE, vae=VAEConfig(block_out_channels=(32, 32), latent_channels=8))
    assert "has 4 latent channels, but the model's VAE 8; encode the clips" in refusal(model=wide)
    deep = dataclasses.replace(INVERSE, vae=VAEConfig(block_out_channels=(32, 32, 32)))
    assert "has 2 pixels per latent, but the model's VAE 4" in refusal(model=deep)
    assert "the vae objective needs pixels" in refusal(objective="vae")
    pixels = dataclasses.replace(FORWARD, env_encoder=EnvEncoderConfig(channels=(32, 64), latent_encoder=False))
    assert "environment encoder takes pixels" in refusal(objective="forward", model=pixels)
    large = dataclasses.replace(FORWARD, environment_size=(32, 32))
    assert "model.environment_size, which sampling uses, is (32, 32)" in refusal(objective="forward", model=large)
    for augmentation in ({"exposure_range": (0.5, 2.0)}, {"crop": 0.5}):
        assert "data.exposure_range, data.rotation and data.crop need clips" in refusal(**augmentation)
    assert "'clip0' has none of data.passes" in refusal(passes=("diffuse_albedo",))
    assert "has 2 frames per entry, fewer than 3" in refusal(frames=3)
    assert f"{lit} holds clips and {cached} cached latents; encode both" in refusal(cached, lit)
    values = json.loads((cached / "set.json").read_text())
    for change, what in (
        ({"weights": "other"}, "another VAE than"),
        ({"size": [2, 2]}, "another size ((2, 2) and (16, 16))"),
    ):
        twin = tmp_path / f"twin-{next(iter(change))}"
        twin.mkdir()
        for path in cached.iterdir():
            if path.is_dir():
                (twin / path.name).symlink_to(path)
        (twin / "set.json").write_text(json.dumps(values | change))
        assert what in refusal(cached, twin)
